//! The lab log that the project ships, read into memory for the checks in `tests/`.

use flate2::read::GzDecoder;
use std::fs::File;
use std::io::{self, BufRead, BufReader};

/// The lines of `examples/data/cowrie-3.1.4-lab-10k.json.gz`, one Cowrie event each.
///
/// # Errors
///
/// When the file is missing or damaged.
pub fn lines() -> io::Result<Vec<String>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/cowrie-3.1.4-lab-10k.json.gz");
    BufReader::new(GzDecoder::new(File::open(path)?)).lines().collect()
}

/// The payloads of the attack events that `normalize` makes of the log, in order.
///
/// # Errors
///
/// As for `lines`. The log holds nothing that `normalize` rejects; the checks say so.
pub fn attacks() -> io::Result<Vec<String>> {
    let attacks = lines()?.into_iter().filter_map(|line| normalize::attack::from_cowrie(&line, "").ok().flatten());
    Ok(attacks.map(|attack| attack.payload.to_string()).collect())
}
