//! What the program carries: the plugins of the demo and of the benchmark, and the Cowrie lab log.

use std::io::Read;

use anyhow::{Result, bail};

use crate::candidate::Candidate;
use crate::exit::Environment;

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// Genuine output of a Cowrie honeypot in a lab: 10,414 events of 1,250 scripted sessions, no real attackers.
static LAB_LOG: &[u8] = include_bytes!("../../../examples/data/cowrie-3.1.4-lab-10k.json.gz");

/// An embedded plugin.
///
/// # Errors
/// [`Environment`] in a build without plugins, with what to type.
pub(crate) fn plugin(name: &str) -> Result<Candidate> {
    let Some((_, wasm, manifest)) = PLUGINS.iter().find(|(found, _, _)| *found == name) else {
        bail!(Environment(format!(
            "this build carries no plugin {name:?}: the guests were not built before the host.\n  in the source tree: plugins/build.sh, then cargo build --release (make does both)"
        )));
    };
    Ok(Candidate {
        file_name: name.to_owned(),
        wasm: (*wasm).into(),
        manifest: (*manifest).to_owned(),
        ..Candidate::default()
    })
}

/// The lines of the lab log.
pub(crate) fn lab_log() -> Result<Vec<String>> {
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(LAB_LOG).read_to_string(&mut text)?;
    Ok(text.lines().map(str::to_owned).collect())
}
