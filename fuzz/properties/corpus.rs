//! The inputs that fuzzing has found, each through the function that it was found with: by the ordinary compiler, without libFuzzer.

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

/// Fails with the names of all inputs of a target that the function does not hold for.
pub(crate) fn each(target: &str, holds: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let files = fs::read_dir(&folder).expect("the corpus is part of the source tree");
    let files: Vec<_> = files.map(|file| file.expect("the corpus can be read").path()).collect();
    assert!(files.len() > 20, "{} holds next to nothing", folder.display());
    let fails = |file: &&std::path::PathBuf| {
        let bytes = fs::read(file).expect("the corpus can be read");
        catch_unwind(|| holds(&bytes)).is_err()
    };
    let failed: Vec<_> = files.iter().filter(fails).collect();
    assert!(failed.is_empty(), "{failed:?}");
}
