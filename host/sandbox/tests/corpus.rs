//! The files and guests that fuzzing has found (`make fuzz`), each once more.

#[path = "../../../fuzz/properties/admission.rs"]
mod admission;
#[path = "../../../fuzz/properties/corpus.rs"]
mod corpus;
#[path = "../../../fuzz/properties/guest.rs"]
mod guest;

#[test]
fn every_file_becomes_a_plugin_or_is_refused() {
    corpus::each("admission", admission::holds);
}

#[test]
fn every_guest_comes_back_in_time_and_answers_the_same_again() {
    corpus::each("guest", guest::holds);
}
