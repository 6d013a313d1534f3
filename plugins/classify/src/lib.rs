//! Names the MITRE ATT&CK techniques that an attack event shows.
//!
//! ```text
//! stream:attacks ──▶ decision::of_attack ──▶ stream:ai_decisions
//!                       │
//!                       ├─ shell: a command line taken apart into simple commands
//!                       └─ rules: the tables of what shows which technique; extend these
//! ```

pub mod decision;
pub mod rules;
pub mod shell;
pub mod techniques;

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
            match crate::decision::of_attack(&message.payload, &message.timestamp) {
                Ok(Some(decision)) => Ok(vec![Event {
                    stream: "stream:ai_decisions".to_string(),
                    payload: decision.payload.to_string(),
                    priority: Some(decision.priority),
                    key: Some(decision.attacker_ip),
                    attributes: Vec::new(),
                }]),
                Ok(None) => Ok(Vec::new()),
                Err(reason) => Err(Failure::Reject(reason.to_string())),
            }
        }
    }
}
