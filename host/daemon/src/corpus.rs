//! The manifests and configurations that fuzzing has found (`make fuzz`), each once more.

#[path = "../../../fuzz/properties/corpus.rs"]
mod inputs;
#[path = "../../../fuzz/properties/text.rs"]
mod text;

#[test]
fn every_manifest_and_configuration_is_understood_or_refused() {
    inputs::each("text", text::holds);
}
