//! Turns one line of a Cowrie honeypot's JSON log into one attack event.
//!
//! ```text
//! stream:honeypot_logs ──▶ attack::from_cowrie ──▶ stream:attacks
//! ```
//!
//! Everything worth reading is in `attack`; this file only fits it to the host.

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
            match crate::attack::from_cowrie(&message.payload, &message.timestamp) {
                Ok(Some(attack)) => Ok(vec![Event {
                    stream: "stream:attacks".to_string(),
                    payload: attack.payload.to_string(),
                    priority: Some(attack.priority),
                    // Whoever keeps order downstream keeps it by attacker.
                    key: Some(attack.attacker_ip),
                    attributes: Vec::new(),
                }]),
                Ok(None) => Ok(Vec::new()),
                Err(reason) => Err(Failure::Reject(reason.to_string())),
            }
        }
    }
}
