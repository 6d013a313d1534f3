//! Raises an alert for a grave command or a transferred file.
//!
//! ```text
//! stream:attacks ──▶ alert::for_attack ──▶ stream:alerts
//!                       │
//!                       └─ server::named_in: the one function in which version 1 and version 2 differ
//! ```
//!
//! Version 1 (`--features v1`) crashes on some real messages, as a hurried first version does. It is here so that a crash,
//! its retries, the dead letter, the mended version and the redrive can be shown with nothing staged but the data.

pub mod alert;
pub mod server;

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
            match crate::alert::for_attack(&message.payload, &message.timestamp) {
                Ok(Some(alert)) => Ok(vec![Event {
                    stream: "stream:alerts".to_string(),
                    payload: alert.payload.to_string(),
                    priority: Some(alert.priority),
                    key: Some(alert.attacker_ip),
                    attributes: Vec::new(),
                }]),
                Ok(None) => Ok(Vec::new()),
                Err(reason) => Err(Failure::Reject(reason)),
            }
        }
    }
}
