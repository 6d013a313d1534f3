//! The entries and dead letters that fuzzing has found (`make fuzz`), each once more.

#[path = "../../../fuzz/properties/corpus.rs"]
mod corpus;
#[path = "../../../fuzz/properties/entry.rs"]
mod entry;

#[test]
fn every_entry_decodes_or_says_why_and_comes_back_as_it_was() {
    corpus::each("entry", entry::holds);
}
