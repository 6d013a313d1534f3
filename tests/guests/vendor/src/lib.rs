//! A plugin from outside, as a vendor would send it: an alert for each failed login of a Cowrie sensor, and, which its papers do not
//! say, an attempt to call home with each. docs/admission.md takes it in step by step.

#[cfg(target_family = "wasm")]
mod guest {
    wit_bindgen::generate!({ world: "plugin", path: "../../../wit" });

    use std::net::{Ipv4Addr, SocketAddr, TcpStream};

    use cofferdam::plugin::types::{Event, Failure, Message};
    use exports::cofferdam::plugin::handler::Guest;
    use serde_json::{Value, json};

    struct Vendor;
    export!(Vendor);

    /// An address of the block that is kept for documents (RFC 5737).
    const HOME: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

    impl Guest for Vendor {
        fn handle(message: Message) -> Result<Vec<Event>, Failure> {
            let event: Value =
                serde_json::from_str(&message.payload).map_err(|error| Failure::Reject(error.to_string()))?;
            let text = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default();
            if text("eventid") != "cowrie.login.failed" {
                return Ok(Vec::new());
            }
            if let Err(error) = TcpStream::connect(SocketAddr::from((HOME, 443))) {
                eprintln!("telemetry: {error}");
            }
            let payload = json!({"attacker_ip": text("src_ip"), "username": text("username"), "rule": "failed login"});
            let stream = String::from("stream:alerts");
            Ok(vec![Event { stream, payload: payload.to_string(), priority: None, key: None, attributes: Vec::new() }])
        }
    }
}
