//! What a file says of itself: its imports and exports, read without running any of it.
//!
//! The code is compiled, because that is how its types are read; no instance is made. What it asks for beyond its imports stands
//! in the manifest, which is the daemon's affair.

use wasmtime::Module;
use wasmtime::component::Component;

use crate::artifact::{Artifact, compile};
use crate::bindings::HANDLER_EXPORT;
use crate::plugin::{Abi, Kind, check_import};
use crate::{Engine, LoadError, preview1};

/// What a file says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// How it would be called; `None` when it exports nothing that the host calls.
    pub abi: Option<Abi>,
    /// What it imports, as the file names it, in the order of the file.
    pub imports: Vec<String>,
    /// What it exports.
    pub exports: Vec<String>,
    /// Imports that the host does not offer, each with the reason; such a file does not load.
    pub refused: Vec<String>,
}

/// Reads what a file says of itself.
///
/// # Errors
/// It is not WebAssembly, or does not compile.
pub fn describe(engine: &Engine, wasm: &[u8]) -> Result<Description, LoadError> {
    describe_artifact(engine, &compile(engine, wasm)?)
}

/// The same from code that was compiled before.
///
/// # Errors
/// It is another engine's, or needs more memory or a larger table than any instance is given.
pub fn describe_artifact(engine: &Engine, artifact: &Artifact) -> Result<Description, LoadError> {
    match artifact.kind()? {
        Kind::Component => Ok(component(engine, &artifact.component(engine)?)),
        Kind::Module => Ok(module(&artifact.module(engine)?)),
    }
}

fn component(engine: &Engine, component: &Component) -> Description {
    let ty = component.component_type();
    let imports: Vec<String> = ty.imports(engine.wasmtime()).map(|(name, _)| name.to_owned()).collect();
    let exports: Vec<String> = ty.exports(engine.wasmtime()).map(|(name, _)| name.to_owned()).collect();
    let abi = if exports.iter().any(|name| name == HANDLER_EXPORT) {
        Some(Abi::Component)
    } else {
        exports.iter().any(|name| name.starts_with("wasi:cli/run@0.2.")).then_some(Abi::Command)
    };
    let refused = imports.iter().filter_map(|name| check_import(name).err()).map(|error| error.to_string()).collect();
    Description { abi, imports, exports, refused }
}

fn module(module: &Module) -> Description {
    let exports: Vec<String> = module.exports().map(|export| export.name().to_owned()).collect();
    let name = |import: &wasmtime::ImportType<'_>| format!("{}::{}", import.module(), import.name());
    let imports = module.imports().map(|import| name(&import)).collect();
    let foreign = module.imports().filter(|import| import.module() != preview1::MODULE);
    let refused = foreign.map(|import| format!("{}: only {} is offered to a program", name(&import), preview1::MODULE));
    let abi = exports.iter().any(|name| name == "_start").then_some(Abi::Command);
    Description { abi, refused: refused.collect(), imports, exports }
}
