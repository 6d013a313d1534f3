use std::fs;

use cofferdam_tests::{Host, Place, Redis, program, publish, root, wait_until};

fn kept(name: &str) -> Vec<u8> {
    fs::read(root().join("tests/data/signed").join(name)).expect("it is part of the source tree")
}

fn status(place: &Place) -> String {
    fs::read_to_string(place.plugins().join("answer.status.txt")).unwrap_or_default()
}

#[test]
fn where_signatures_are_required_only_what_a_trusted_key_has_signed_runs() {
    let (redis, place) = (Redis::start(), Place::new());
    let keys = format!("[{:?}]", root().join("tests/data/signed/trusted.pub"));
    let policy = [("COFFERDAM__POLICY__REQUIRE_SIGNATURE", "true"), ("COFFERDAM__POLICY__SIGNING_KEYS", keys.as_str())];
    let _host = Host::start(&program(), &redis.url(), &place.directory.path().join("data"), &place.plugins(), &policy);
    let sign = |signature: &[u8]| {
        fs::write(place.plugins().join("answer.wasm.minisig"), signature).expect("the folder can be written");
    };
    let put = |wasm: &[u8]| {
        place.put("answer", wasm, "subscribe = [\"stream:in\"]\nemit = [\"stream:out\"]\nstart = \"oldest\"\n");
    };
    publish(&redis, "stream:in", [String::from("{}")].into_iter());

    put(&kept("answer.wasm"));
    wait_until("nobody has signed it", || status(&place).contains("signature: nobody has signed it"));
    sign(&kept("foreign.minisig"));
    wait_until("a stranger has signed it", || status(&place).contains("a key that is not trusted here"));
    sign(&kept("other-file.minisig"));
    wait_until("another file was signed", || status(&place).contains("its signature does not fit"));
    sign(b"no signature at all");
    wait_until("it is no signature", || status(&place).contains("is no signature"));
    assert_eq!(redis.cli(&["EXISTS", "stream:out"]), "0", "it ran");
    sign(&kept("trusted.minisig"));
    wait_until("it runs", || redis.number(&["XLEN", "stream:out"]) == 1);
    wait_until("who signed it is told", || status(&place).contains("the vendor, in person"));

    // One section more, under the signature of what was there before: the version that runs goes on.
    put(&[kept("answer.wasm"), vec![0, 2, 1, b'x']].concat());
    wait_until("the change is noticed", || status(&place).contains("REFUSED  signature   its signature does not fit"));
    assert!(status(&place).starts_with("answer: running"), "{}", status(&place));
}

#[test]
fn where_signatures_are_required_nothing_unsigned_reaches_the_compiler() {
    let (redis, place) = (Redis::start(), Place::new());
    let keys = format!("[{:?}]", root().join("tests/data/signed/trusted.pub"));
    let policy = [("COFFERDAM__POLICY__REQUIRE_SIGNATURE", "true"), ("COFFERDAM__POLICY__SIGNING_KEYS", keys.as_str())];
    fs::write(place.plugins().join("answer.wasm"), kept("answer.wasm")).expect("the folder can be written");
    let data = place.directory.path().join("data");
    let _host = Host::start(&program(), &redis.url(), &data, &place.plugins(), &policy);
    // It has no manifest either, and without one a file would be compiled and wait for it.
    wait_until("something is said of it", || status(&place).contains("answer: "));
    assert!(status(&place).contains("signature: nobody has signed it"), "{}", status(&place));
    let code = fs::read_dir(data.join("compiled")).into_iter().flatten().flatten();
    let code = code.filter(|entry| entry.path().extension().is_some_and(|ending| ending == "code"));
    assert_eq!(code.count(), 0, "it was compiled");
}
