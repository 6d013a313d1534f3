//! The guest of `cofferdam bench`: what an ordinary handler does, and nothing to make it look fast.
//!
//! ```text
//! stream:bench_in ──▶ attack::from_payload ──▶ stream:bench_out
//! ```

pub mod attack;

/// The plugin's side of `wit/handler.wit`. It exists only in the WebAssembly build, so the logic is tested natively.
#[cfg(target_family = "wasm")]
mod guest {
    wit_bindgen::generate!({ world: "plugin", path: "../../wit" });

    use cofferdam::plugin::types::{Event, Failure, Message};
    use exports::cofferdam::plugin::handler::Guest;

    struct Plugin;
    export!(Plugin);

    impl Guest for Plugin {
        fn handle(message: Message) -> Result<Vec<Event>, Failure> {
            match crate::attack::from_payload(&message.payload) {
                Ok(payload) => Ok(vec![Event {
                    stream: "stream:bench_out".to_string(),
                    payload: payload.to_string(),
                    priority: None,
                    key: None,
                    attributes: Vec::new(),
                }]),
                Err(error) => Err(Failure::Reject(format!("the payload cannot be read as JSON: {error}"))),
            }
        }
    }
}
