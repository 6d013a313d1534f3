//! Embeds the plugins that `demo` and `bench` bring along, when plugins/build.sh has built them.

use std::fmt::Write as _;
use std::path::Path;

fn main() {
    // Asked when it runs: a target folder that several clones share keeps this program from the first of them.
    let here = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let dist = Path::new(&here).join("../../plugins/dist");
    println!("cargo:rerun-if-changed={}", dist.display());
    println!("cargo:rerun-if-changed=build.rs");
    let mut list = String::from("pub(crate) static PLUGINS: &[(&str, &[u8], &str)] = &[\n");
    for (name, manifest) in [
        ("normalize", "normalize"),
        ("classify", "classify"),
        ("ioc", "ioc"),
        ("flaky-v1", "flaky"),
        ("flaky-v2", "flaky"),
        ("bench", "bench"),
    ] {
        let (wasm, toml) = (dist.join(format!("{name}.wasm")), dist.join(format!("{manifest}.toml")));
        if wasm.is_file() && toml.is_file() {
            println!("cargo:rerun-if-changed={}", wasm.display());
            println!("cargo:rerun-if-changed={}", toml.display());
            writeln!(list, "    ({name:?}, include_bytes!({wasm:?}), include_str!({toml:?})),")
                .expect("a string takes all");
        }
    }
    list.push_str("];\n");
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    std::fs::write(Path::new(&out).join("embedded.rs"), list).expect("OUT_DIR can be written");
}
