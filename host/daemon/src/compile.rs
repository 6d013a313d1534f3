//! From wasm to machine code, in a child process: what an attacker wrote meets the compiler in a jail (`jail.rs`), never here.
//!
//! ```text
//!  artifact(wasm) ─▶ the cache has it? ── yes ─▶ Artifact
//!                          │ no
//!                          ▼
//!        compile-apart: caps ─▶ validate ─▶ compile      memory, processor time and wall clock bounded
//!                          │
//!                          ▼
//!                  kept in the cache, sealed ─▶ Artifact
//! ```
//!
//! Here the wasm is only hashed.

use std::io;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use anyhow::Context;
use cofferdam_sandbox::{Artifact, Digest, Engine, EngineConfig};
use serde::{Deserialize, Serialize};

use crate::compiled::Cache;
use crate::config::CompileBounds;
use crate::escape::safe;
use crate::frames::{read_frame, write_frame};
use crate::host::MEMORY_BYTES_MAX;
use crate::jail::{self, Bounds, Jailed};
use crate::mutants::planted;
use crate::quantity::show_bytes;
use crate::steps::{Refusal, Step, refuse};

/// What the child needs before it compiles anything: the engine and its pool's bookkeeping.
const MEMORY_OWN_BYTES: u64 = 64 << 20;
/// The wall clock allows this many times the processor time: on a busy machine a fair plugin waits for its turn.
const WALL_FACTOR: u32 = 4;

/// What a planted bug lets it take: every memory, and a day.
const UNBOUNDED: CompileBounds = CompileBounds { memory_bytes: u64::MAX, time: Duration::from_secs(86_400) };

/// Compiles for one engine. Shared by all who load plugins.
#[derive(Debug)]
pub(crate) struct Compiler {
    engine: Engine,
    bounds: CompileBounds,
    cache: Option<Cache>,
}

/// What the child answers; the artifact follows in a frame of its own.
#[derive(Serialize, Deserialize)]
enum Answer {
    Compiled { notes: Vec<String> },
    Refused { step: Step, text: String },
}

impl Compiler {
    /// One that keeps what it makes, if a cache is given.
    pub(crate) fn new(engine: Engine, bounds: CompileBounds, cache: Option<Cache>) -> Self {
        Compiler { engine, bounds, cache }
    }

    /// The engine that the code is for.
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The code of a file, from the cache or freshly compiled. Takes up to minutes: not for an async thread.
    ///
    /// # Errors
    /// The step that refuses the file: [`Step::Caps`] or [`Step::Compile`].
    pub(crate) fn artifact(&self, wasm: &[u8]) -> Result<Artifact, Refusal> {
        let key = format!("{}-{}", Digest::of(wasm), self.engine.compatibility());
        if let Some(artifact) = self.cache.as_ref().and_then(|cache| cache.get(&key)) {
            return Ok(artifact);
        }
        let artifact = self.compile(wasm)?;
        if let Some(cache) = &self.cache {
            cache.put(&key, &artifact);
        }
        Ok(artifact)
    }

    fn compile(&self, wasm: &[u8]) -> Result<Artifact, Refusal> {
        let CompileBounds { memory_bytes, time } = if planted("no-compile-jail") { UNBOUNDED } else { self.bounds };
        let bounds = Bounds { memory_bytes: memory_bytes.saturating_add(MEMORY_OWN_BYTES), cpu: Some(time) };
        let mut jailed = Jailed::spawn("compile-apart", &bounds)
            .map_err(|error| refuse(Step::Compile, format!("cannot start the compiler's process: {error}")))?;
        let answer = (|| -> io::Result<(Answer, Vec<u8>)> {
            jailed.write(wasm)?;
            let answer = serde_json::from_slice(&jailed.read(time * WALL_FACTOR)?)?;
            let artifact = match answer {
                Answer::Compiled { .. } => jailed.read(time)?,
                Answer::Refused { .. } => Vec::new(),
            };
            Ok((answer, artifact))
        })();
        match answer {
            Ok((Answer::Compiled { notes }, bytes)) => {
                notes.iter().for_each(|note| tracing::warn!("compiling: {note}"));
                Ok(Artifact::from_own_compiler(bytes))
            }
            Ok((Answer::Refused { step, text }, _)) => Err(refuse(step, safe(&text))),
            Err(error) => Err(refuse(Step::Compile, self.why(&mut jailed, &error))),
        }
    }

    /// In words, why there was no answer.
    fn why(&self, jailed: &mut Jailed, error: &io::Error) -> String {
        use std::os::unix::process::ExitStatusExt;
        let time = humantime::format_duration(self.bounds.time);
        let memory = show_bytes(self.bounds.memory_bytes);
        if error.kind() == io::ErrorKind::TimedOut {
            let wall = humantime::format_duration(self.bounds.time * WALL_FACTOR);
            return format!(
                "it took more than {wall} by the clock; on a machine this busy raise [limits] compile-time in cofferdam.toml"
            );
        }
        let signal = jailed.ended(error).and_then(|status| status.signal());
        match signal {
            Some(libc::SIGXCPU | libc::SIGKILL) => format!(
                "it took more than {time} of processor time; if you trust this file, raise [limits] compile-time in cofferdam.toml"
            ),
            Some(libc::SIGABRT) => format!(
                "the compiler gave up, as it does when it needs more than {memory} of memory; if you trust this file, raise [limits] compile-memory in cofferdam.toml"
            ),
            _ => format!("the compiler's process ended without an answer: {}", jailed.last_words(error)),
        }
    }
}

/// What `cofferdam compile-apart` does: one file in, one artifact out.
pub(crate) fn serve(bounds: &Bounds) -> anyhow::Result<()> {
    let engine = Engine::new(EngineConfig { instances_max: 1, memory_bytes_max: MEMORY_BYTES_MAX })?;
    let notes = jail::enter(bounds);
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let wasm = read_frame(&mut input)?.context("no wasm came")?;
    let compiled = std::panic::catch_unwind(AssertUnwindSafe(|| cofferdam_sandbox::compile(&engine, &wasm)));
    let (answer, artifact) = match compiled {
        Ok(Ok(artifact)) => (Answer::Compiled { notes }, Some(artifact)),
        Ok(Err(error)) => {
            let step = match error {
                cofferdam_sandbox::LoadError::TooMuch { .. } => Step::Caps,
                _ => Step::Compile,
            };
            (Answer::Refused { step, text: error.to_string() }, None)
        }
        Err(_) => {
            let text = String::from("the compiler panicked on it; build it with another version of its toolchain");
            (Answer::Refused { step: Step::Compile, text }, None)
        }
    };
    write_frame(&mut output, &serde_json::to_vec(&answer)?)?;
    if let Some(artifact) = artifact {
        write_frame(&mut output, artifact.bytes())?;
    }
    Ok(())
}
