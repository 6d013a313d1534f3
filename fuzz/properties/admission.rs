//! What must be true of every file that somebody drops: it becomes a plugin, or it is refused in a few words, and nothing else
//! happens. These are the steps of admission that look at its bytes; the program takes the first of them in a process of its own.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use cofferdam_model::Route;
use cofferdam_sandbox::{
    Digest, Engine, EngineConfig, Instances, Limits, LoadError, Plugin, PluginSpec, compile, describe,
};

/// The longest refusal, in bytes: it stands in the log, in a status file and in `cofferdam plugins`.
const WORDS_BYTES_MAX: usize = 8_192;
/// Memory that a guest is granted here.
pub(crate) const MEMORY_BYTES: u64 = 1 << 20;
/// Time that it is granted.
pub(crate) const DEADLINE: Duration = Duration::from_millis(20);

/// Fails when the file does anything but that.
pub(crate) fn holds(wasm: &[u8]) {
    // Whoever inspects it reads it without any of the caps.
    let described = describe(wasm);
    if let Err(error) = &described {
        in_few_words(error);
    }
    let artifact = match compile(engine(), wasm) {
        Ok(artifact) => artifact,
        Err(error) => return in_few_words(&error),
    };
    match Plugin::from_artifact(engine(), &artifact, spec()) {
        Ok(plugin) => {
            let description = described.expect("what loads can be described");
            assert_eq!(description.abi, Some(plugin.abi()), "it is described as another thing than it is");
            assert!(description.refused.is_empty(), "it loads with what is not offered: {:?}", description.refused);
        }
        Err(error) => in_few_words(&error),
    }
}

fn in_few_words(error: &LoadError) {
    let words = error.to_string();
    assert!(words.len() <= WORDS_BYTES_MAX, "a refusal of {} bytes", words.len());
}

/// The engine of all of these.
pub(crate) fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let config = EngineConfig { instances_max: 4, memory_bytes_max: 2 * MEMORY_BYTES };
        Engine::new(config).expect("this machine has room for four small guests")
    })
}

/// A plugin with small limits.
pub(crate) fn spec() -> PluginSpec {
    PluginSpec {
        name: String::from("fuzzed"),
        digest: Digest::of(b"fuzzed"),
        limits: Limits {
            memory_bytes: MEMORY_BYTES,
            deadline: DEADLINE,
            output_bytes: 4_096,
            host_calls: 1_000,
            table_elements: 1_000,
            random_bytes: 1_024,
            ..Limits::default()
        },
        instances: Instances::Fresh,
        config: BTreeMap::from([(String::from("THRESHOLD"), String::from("5"))]),
        route: Route::new(vec![String::from("stream:in")], vec![String::from("stream:out")])
            .expect("these are good names"),
    }
}
