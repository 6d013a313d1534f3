//! Compiled code as bytes: made in one process, run in another.
//!
//! The only file with unsafe code. To load an artifact is to run it: its bytes are machine code that the engine cannot check. They
//! are trusted for where they come from, which is this program's own compiler, and never for what they hold.

#![allow(unsafe_code, reason = "loading compiled code is unsafe by nature; see `Artifact::from_own_compiler`")]

use wasmtime::Module;
use wasmtime::component::Component;

use crate::plugin::{Kind, compile_error, kind};
use crate::prepass::prepass;
use crate::{Engine, LoadError};

/// Code that [`compile`] made.
#[derive(Clone, PartialEq, Eq)]
pub struct Artifact {
    bytes: Vec<u8>,
}

impl std::fmt::Debug for Artifact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Artifact").field("bytes", &self.bytes.len()).finish()
    }
}

/// Counts, validates and compiles a file. Hostile code can make it take minutes and gigabytes, so the caller bounds it from outside;
/// the engine's own limits do not.
///
/// # Errors
/// It is no WebAssembly, exceeds a cap, or does not compile.
pub fn compile(engine: &Engine, wasm: &[u8]) -> Result<Artifact, LoadError> {
    let kind = kind(wasm)?;
    prepass(wasm)?;
    let compiled = match kind {
        Kind::Component => engine.wasmtime().precompile_component(wasm),
        Kind::Module => engine.wasmtime().precompile_module(wasm),
    };
    Ok(Artifact { bytes: compiled.map_err(compile_error)? })
}

impl Artifact {
    /// Bytes that [`compile`] made in another process of this same program, and that nobody else can have changed since: they came
    /// through a pipe from a child of ours, or from a file with our seal. Anything else would be foreign machine code that runs with
    /// this process's rights; no check here can tell.
    pub fn from_own_compiler(bytes: Vec<u8>) -> Artifact {
        Artifact { bytes }
    }

    /// What to hand to another process.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The component in it. The engine refuses another version's or other settings', and a module.
    pub(crate) fn component(&self, engine: &Engine) -> Result<Component, LoadError> {
        // SAFETY: the bytes are what `compile` gave, by the promise of `from_own_compiler`.
        unsafe { Component::deserialize(engine.wasmtime(), &self.bytes) }.map_err(compile_error)
    }

    /// The same for a core module.
    pub(crate) fn module(&self, engine: &Engine) -> Result<Module, LoadError> {
        // SAFETY: as above.
        unsafe { Module::deserialize(engine.wasmtime(), &self.bytes) }.map_err(compile_error)
    }

    /// What is in it.
    pub(crate) fn kind(&self) -> Result<Kind, LoadError> {
        match wasmtime::Engine::detect_precompiled(&self.bytes) {
            Some(wasmtime::Precompiled::Component) => Ok(Kind::Component),
            Some(wasmtime::Precompiled::Module) => Ok(Kind::Module),
            None => Err(LoadError::NotWasm { found: String::from("the compiler's answer is no compiled code") }),
        }
    }
}
