//! What a file says of itself, read without compiling or running any of it: parsing is linear in its size, so that a file made
//! to exhaust a compiler is looked at safely. What it asks for beyond its imports stands in the manifest, the daemon's affair.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use wasmparser::{ComponentExport, ComponentImport, DataKind, KnownCustom, Parser, Payload};

use crate::bindings::HANDLER_EXPORT;
use crate::plugin::{Abi, Kind, check_import, kind};
use crate::prepass::malformed;
use crate::{LoadError, preview1};

/// Names of a kind that are kept: the largest interpreters have some 300, and a file may claim millions.
const NAMES_MAX: usize = 4_096;
/// The custom section in which `cofferdam build` puts the manifest.
pub const MANIFEST_SECTION: &str = "cofferdam:manifest";
/// Bytes of data below which their entropy says nothing.
const ENTROPY_BYTES_MIN: usize = 4_096;

/// What a file says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Description {
    /// How it would be called; `None` when it exports nothing that the host calls.
    pub abi: Option<Abi>,
    /// What it imports, as the file names it, in the order of the file; the first 4,096.
    pub imports: Vec<String>,
    /// What it exports; the first 4,096.
    pub exports: Vec<String>,
    /// Imports that the host does not offer, each with the reason; such a file does not load.
    pub refused: Vec<String>,
    /// Core modules in it; 1 for a core module.
    pub modules: u32,
    /// Functions with a body, in all modules.
    pub functions: u64,
    /// The longest body, in bytes.
    pub function_bytes_max: u64,
    /// All bodies together, in bytes.
    pub code_bytes: u64,
    /// Linear memories of all modules: smallest and largest size in bytes; no largest is up to the limit that is granted.
    pub memories: Vec<(u64, Option<u64>)>,
    /// All data segments together, in bytes.
    pub data_bytes: u64,
    /// Entropy of the largest data segment in bits a byte, when it is long enough to say something. Text has 4 to 5, packed or
    /// encrypted bytes have nearly 8.
    pub data_entropy: Option<f64>,
    /// Custom sections: name, and the size of all of that name in bytes.
    pub custom: BTreeMap<String, u64>,
    /// The tool chain, as it names itself: field, name, version.
    pub producers: BTreeSet<(String, String, String)>,
    /// Whether its functions have names, for backtraces.
    pub has_names: bool,
    /// The embedded manifest, as [`embedded_manifest`] finds it.
    pub manifest: Option<String>,
    /// Whether a module runs code when it is started, before any message.
    pub has_start: bool,
}

/// Reads what a file says of itself.
///
/// # Errors
/// It is not WebAssembly, or does not parse.
pub fn describe(wasm: &[u8]) -> Result<Description, LoadError> {
    let kind = kind(wasm)?;
    let mut found = Description::default();
    let (mut depth, mut largest) = (0u32, 0..0);
    for payload in Parser::new(0).parse_all(wasm) {
        section(payload.map_err(malformed)?, &mut depth, &mut found, &mut largest).map_err(malformed)?;
    }
    found.manifest = embedded_manifest(wasm);
    found.data_entropy = wasm.get(largest).filter(|data| data.len() >= ENTROPY_BYTES_MIN).map(entropy);
    let exports = |wanted: &dyn Fn(&str) -> bool| found.exports.iter().any(|name| wanted(name));
    (found.abi, found.refused) = match kind {
        Kind::Component if exports(&|name| name == HANDLER_EXPORT) => (Some(Abi::Component), refused(&found.imports)),
        Kind::Component => {
            let runs = exports(&|name| name.starts_with("wasi:cli/run@0.2."));
            (runs.then_some(Abi::Command), refused(&found.imports))
        }
        Kind::Module => {
            let foreign = |name: &&String| !name.starts_with(&format!("{}::", preview1::MODULE));
            let why = |name: &String| format!("{name}: only {} is offered to a program", preview1::MODULE);
            (
                exports(&|name| name == "_start").then_some(Abi::Command),
                found.imports.iter().filter(foreign).map(why).collect(),
            )
        }
    };
    Ok(found)
}

/// The manifest that a file carries as its last section. Because it is the last, a file that has one is whole.
pub fn embedded_manifest(wasm: &[u8]) -> Option<String> {
    let mut last = None;
    let mut depth = 0u32;
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.ok()? {
            Payload::Version { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            // A section of a module within is none of the file's.
            Payload::CustomSection(section) if depth == 1 => last = Some(section),
            _ => last = None,
        }
    }
    let section = last.filter(|section| section.name() == MANIFEST_SECTION)?;
    String::from_utf8(section.data().to_vec()).ok()
}

fn refused(imports: &[String]) -> Vec<String> {
    imports.iter().filter_map(|name| check_import(name).err()).map(|error| error.to_string()).collect()
}

fn section(
    payload: Payload<'_>,
    depth: &mut u32,
    found: &mut Description,
    largest: &mut Range<usize>,
) -> Result<(), wasmparser::BinaryReaderError> {
    // The names of the outermost module or component are the file's; what is inside is its own affair.
    let outermost = *depth == 1;
    match payload {
        Payload::Version { encoding, .. } => {
            *depth += 1;
            found.modules += u32::from(encoding == wasmparser::Encoding::Module);
        }
        Payload::End(_) => *depth = depth.saturating_sub(1),
        Payload::ImportSection(imports) if outermost => {
            for import in imports.into_imports() {
                let import = import?;
                keep(&mut found.imports, format!("{}::{}", import.module, import.name));
            }
        }
        Payload::ExportSection(exports) if outermost => {
            for export in exports {
                keep(&mut found.exports, export?.name.to_owned());
            }
        }
        Payload::ComponentImportSection(imports) if outermost => {
            for import in imports {
                let ComponentImport { name, .. } = import?;
                keep(&mut found.imports, name.name.to_owned());
            }
        }
        Payload::ComponentExportSection(exports) if outermost => {
            for export in exports {
                let ComponentExport { name, .. } = export?;
                keep(&mut found.exports, name.name.to_owned());
            }
        }
        Payload::MemorySection(memories) => {
            for memory in memories {
                let memory = memory?;
                let page = 1u64 << memory.page_size_log2.unwrap_or(16);
                let bytes = |pages: u64| pages.saturating_mul(page);
                if found.memories.len() < NAMES_MAX {
                    found.memories.push((bytes(memory.initial), memory.maximum.map(bytes)));
                }
            }
        }
        Payload::StartSection { .. } => found.has_start = true,
        Payload::CodeSectionStart { count, size, .. } => {
            found.functions += u64::from(count);
            found.code_bytes += u64::from(size);
        }
        Payload::CodeSectionEntry(body) => {
            found.function_bytes_max = found.function_bytes_max.max(body.range().len() as u64);
        }
        Payload::DataSection(segments) => {
            for segment in segments {
                let segment = segment?;
                // Passive or active, it is the same to whoever looks.
                let (DataKind::Passive | DataKind::Active { .. }) = segment.kind;
                found.data_bytes += segment.data.len() as u64;
                if segment.data.len() > largest.len() {
                    *largest = segment.range.end - segment.data.len()..segment.range.end;
                }
            }
        }
        Payload::CustomSection(section) => custom(&section, found),
        _ => {}
    }
    Ok(())
}

/// Nothing that runs depends on a custom section, so none makes a file malformed: one that is cut short tells what it tells.
fn custom(section: &wasmparser::CustomSectionReader<'_>, found: &mut Description) {
    if found.custom.len() < NAMES_MAX {
        *found.custom.entry(section.name().to_owned()).or_default() += section.data().len() as u64;
    }
    match section.as_known() {
        KnownCustom::Name(_) => found.has_names = true,
        KnownCustom::Producers(fields) => {
            for field in fields.into_iter().map_while(Result::ok) {
                for value in field.values.into_iter().map_while(Result::ok) {
                    if found.producers.len() < NAMES_MAX {
                        let owned = |text: &str| text.to_owned();
                        found.producers.insert((owned(field.name), owned(value.name), owned(value.version)));
                    }
                }
            }
        }
        _ => {}
    }
}

fn keep(names: &mut Vec<String>, name: String) {
    if names.len() < NAMES_MAX {
        names.push(name);
    }
}

/// Shannon's entropy, in bits a byte.
fn entropy(data: &[u8]) -> f64 {
    let mut counts = [0u64; 256];
    for &byte in data {
        if let Some(count) = counts.get_mut(usize::from(byte)) {
            *count += 1;
        }
    }
    let share = |count: u64| count as f64 / data.len() as f64;
    counts.into_iter().filter(|count| *count > 0).map(share).map(|share| -share * share.log2()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_tells_text_from_packed_bytes() {
        assert_eq!(entropy(&[7; 5_000]), 0.0);
        let all: Vec<u8> = (0..=255).cycle().take(5_120).collect();
        assert!((entropy(&all) - 8.0).abs() < 1e-9);
    }

    #[test]
    fn what_tools_say_of_themselves_may_be_cut_short() {
        // Two fields, the second of which is missing.
        let producers = b"\x02\x0cprocessed-by\x01\x01a\x011";
        let mut wasm = wat::parse_str("(module (func (export \"_start\")))").unwrap();
        wasm.extend([0, u8::try_from(1 + 9 + producers.len()).unwrap(), 9]);
        wasm.extend(b"producers");
        wasm.extend(producers);
        let found = describe(&wasm).unwrap();
        let one = ["processed-by", "a", "1"].map(String::from);
        assert_eq!(found.producers.into_iter().map(|(a, b, c)| [a, b, c]).collect::<Vec<_>>(), [one]);
    }

    #[test]
    fn a_module_says_what_it_has() {
        let text =
            "(module (import \"env\" \"f\" (func)) (memory 2 5) (func (export \"_start\") (drop (i32.const 1))))";
        let wasm = wat::parse_str(text).unwrap();
        let found = describe(&wasm).unwrap();
        assert_eq!((found.abi, found.functions, found.modules), (Some(Abi::Command), 1, 1));
        assert_eq!(found.memories, [(2 << 16, Some(5 << 16))]);
        assert_eq!(found.imports, ["env::f"]);
        assert!(found.refused[0].contains("only wasi_snapshot_preview1"), "{:?}", found.refused);
        assert!(describe(&wasm[..wasm.len() - 3]).is_err());
    }
}
