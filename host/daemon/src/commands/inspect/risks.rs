//! What a plugin could do if it were let, and what stands against it, in plain words.

use super::Found;
use crate::config::Config;
use crate::quantity::show_bytes;

/// Functions from which on somebody should ask why: Python's whole interpreter has some 15,000.
const FUNCTIONS_MANY: u64 = 50_000;
/// Bytes of one function from which on a compiler has much to do.
const FUNCTION_BYTES_LARGE: u64 = 1 << 20;
/// Bits a byte above which data look packed or encrypted.
const ENTROPY_PACKED: f64 = 7.5;

/// The sheet, the furthest reach first.
pub(super) fn risks(found: &Found, config: &Config) -> Vec<String> {
    let Found { description, manifest, candidate, .. } = found;
    let mut risks = Vec::new();
    let imports = |prefix: &str| description.imports.iter().any(|name| name.starts_with(prefix));
    let sealed = [("wasi:sockets/", "the network"), ("wasi:filesystem/types", "files"), ("wasi:http/", "HTTP")];
    let asked: Vec<_> = sealed.iter().filter(|(prefix, _)| imports(prefix)).map(|(_, what)| *what).collect();
    for what in &asked {
        risks.push(format!("it was built with {what} in mind: sealed here, whatever it calls finds nothing"));
    }
    if imports("wasi_snapshot_preview1::") {
        risks.push(String::from(
            "it is a WASI preview 1 program: the files and sockets of that interface are sealed here",
        ));
    } else if asked.is_empty() {
        risks.push(String::from("it imports nothing that reaches outside"));
    }
    match manifest {
        Some(manifest) if !manifest.route.emit().is_empty() => {
            risks.push(format!("it may write anything to {}", manifest.route.emit().join(", ")));
        }
        Some(_) => risks.push(String::from("it may write to no stream")),
        None => {}
    }
    if candidate.embedded {
        risks.push(String::from(
            "its manifest is its maker's word: as a new plugin it waits until somebody approves it",
        ));
    }
    memory(found, config, &mut risks);
    if description.has_start {
        risks.push(String::from("it runs code when it is started, before any message: under the same limits"));
    }
    if description.functions >= FUNCTIONS_MANY {
        risks.push(format!("it has {} functions: it may be made to be slow to compile", description.functions));
    }
    if description.function_bytes_max >= FUNCTION_BYTES_LARGE {
        let bytes = show_bytes(description.function_bytes_max);
        risks.push(format!("its longest function has {bytes}: it may be made to be slow to compile"));
    }
    if let Some(entropy) = description.data_entropy.filter(|entropy| *entropy >= ENTROPY_PACKED) {
        risks.push(format!(
            "its data look packed or encrypted ({entropy:.1} bits a byte): what it does is hidden in them"
        ));
    }
    if !description.has_names {
        risks.push(String::from("its functions have no names: a backtrace shows numbers only"));
    }
    if description.producers.is_empty() {
        risks.push(String::from("it does not say which tools made it"));
    }
    if candidate.signature.is_none() {
        risks.push(String::from("nobody has signed it: nobody vouches for it"));
    }
    risks
}

fn memory(found: &Found, config: &Config, risks: &mut Vec<String>) {
    let memories = &found.description.memories;
    if memories.is_empty() {
        return;
    }
    // A memory that names no largest size grows until it is stopped.
    let growth = memories.iter().map(|(_, most)| most.unwrap_or(u64::MAX)).fold(0, u64::saturating_add);
    let granted = found.manifest.as_ref().map(|manifest| {
        let ceiling = &config.policy(&manifest.name).ceiling;
        manifest.limits.under(ceiling).memory_bytes
    });
    risks.push(match granted {
        Some(granted) if growth > granted => {
            format!("its memory may grow until it is stopped, at {}", show_bytes(granted))
        }
        None if growth == u64::MAX => String::from("its memory may grow until the limit that a manifest gives it"),
        _ => format!("its memory may grow to {}", show_bytes(growth)),
    });
}
