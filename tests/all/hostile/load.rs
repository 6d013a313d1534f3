use cofferdam_model::ReasonCode::{HostCrashes, Trap};
use cofferdam_tests::{Host, Place, Redis, guest, program_with_mutants, publish, wait_until};

use super::Expect::{Bounded, Fault, Handled, NotWhole, OneIn, Refused};
use super::{Entry, Guest, arena, entry};

/// Whether files are compiled in a process of their own, under bounds. While they are not, what a compiler chokes on cannot be asked
/// of it without choking the host: entries 61 to 69 are then built and not dropped.
pub(crate) const COMPILE_JAIL: bool = true;

pub(crate) const ENTRIES: &[Entry] = &[
    entry!(61, "loops nested 900 deep over 400 locals", "compilation apart", Guest::new("61-nested-loops", Bounded)),
    entry!(62, "50,000 functions", "compilation apart", Guest::new("62-many-functions", Bounded)),
    entry!(63, "function of 200,000 instructions", "compilation apart", Guest::new("63-long-function", Bounded)),
    entry!(64, "49,000 locals", "compilation apart", Guest::new("64-many-locals", Bounded)),
    entry!(65, "branch table of 100,000", "compilation apart", Guest::new("65-large-br-table", Bounded)),
    entry!(66, "50,000 loads and stores", "compilation apart", Guest::new("66-loads-and-stores", Bounded)),
    entry!(67, "calls with 1,000 results", "compilation apart", Guest::new("67-thousand-results", Bounded)),
    entry!(68, "component of 10^5 types", "compilation apart", Guest::new("68-many-types", Bounded)),
    entry!(69, "component of 1,000 core instances", "compilation apart", Guest::new("69-many-instances", Bounded)),
    entry!(70, "custom section of 128 MB", "size of a file", Guest::new("70-custom-section", Refused("", "67108864"))),
    entry!(
        71,
        "machine code as .wasm",
        "only WebAssembly is read",
        Guest::new("71-elf", Refused("compile", "ELF")),
        Guest::new("71-cwasm", Refused("compile", "not a WebAssembly file")),
    ),
    entry!(
        72,
        "truncated module that still validates",
        "sha256 of the whole file",
        Guest::new("72-truncated", NotWhole)
    ),
    entry!(
        73,
        "nothing, a header, noise, gzip",
        "only WebAssembly is read",
        Guest::new("73-empty", Refused("compile", "empty")),
        Guest::new("73-header", Refused("world", "_start")),
        Guest::new("73-random", Refused("compile", "not a WebAssembly file")),
        Guest::new("73-gzip", Refused("compile", "gzip")),
    ),
    entry!(
        74,
        "right export, wrong signature",
        "contract's types",
        Guest::new("74-wrong-signature", Refused("world", "signature"))
    ),
    entry!(
        75,
        "unknown import",
        "nothing is offered",
        Guest::new("75-unknown-import", Refused("world", "env::system"))
    ),
    entry!(
        76,
        "another version of the contract",
        "contract's version",
        Guest::new("76-wrong-version", Refused("world", "handler@0.2.0"))
    ),
    entry!(
        77,
        "bytes that its manifest does not vouch for",
        "sha256 of the whole file",
        Guest::new("50-unread", NotWhole)
    ),
    entry!(
        78,
        "fails only now and then",
        "trap; its instance is renewed",
        Guest::new("78-every-third", OneIn(3, Trap)).with("instances = \"reuse\"\nconcurrency = 1\n").messages(9),
    ),
    entry!(
        79,
        "keeps 1 MB of every message",
        "memory limit; a grown instance is renewed",
        Guest::new("79-leak", Handled)
            .with("instances = \"reuse\"\nconcurrency = 1\nretries = 1\n[backoff]\nbase = \"50ms\"\n")
            .messages(150),
    ),
];

/// The one that ends its host, as a hole in the engine would: it has hosts of its own.
pub(crate) const CRASH: &[Entry] = &[entry!(
    80,
    "kills its host",
    "a process of its own for suspects",
    Guest::new("80-host-killer", Fault(HostCrashes))
)];

#[tokio::test(flavor = "multi_thread")]
async fn files_that_must_not_become_plugins() {
    let entries: Vec<&Entry> = ENTRIES.iter().filter(|entry| COMPILE_JAIL || !bomb(entry)).collect();
    for entry in ENTRIES.iter().filter(|entry| !COMPILE_JAIL && bomb(entry) && entry.number != 61) {
        entry.guests.iter().for_each(|guest| drop(cofferdam_tests::guests::build(guest.name)));
    }
    arena::run_some("load", &entries).await;
}

fn bomb(entry: &Entry) -> bool {
    entry.guests.iter().any(|guest| matches!(guest.expect, Bounded))
}

#[test]
fn a_message_that_kills_its_host_ends_among_the_dead_letters_and_its_neighbours_are_handled() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("crashes = 2\n");
    let good = "name = \"good\"\nsubscribe = [\"stream:good_in\"]\nemit = [\"stream:good_out\"]\nstart = \"oldest\"\n";
    place.put("good", &guest("test/actor.wasm"), good);
    let start = || {
        let data = place.directory.path().join("data1");
        Host::start(&program_with_mutants(), &redis.url(), &data, &place.plugins(), &[])
    };
    let mut host = start();
    wait_until("it is live", || redis.cli(&["XINFO", "GROUPS", "stream:good_in"]).contains("group:good"));
    publish(&redis, "stream:in", [String::from(r#"{"do":"kill-host"}"#)].into_iter());
    publish(
        &redis,
        "stream:good_in",
        (0..200).map(|seq| format!(r#"{{"do":"emit","seq":{seq},"to":"stream:good_out"}}"#)),
    );
    let mut deaths = 0;
    wait_until("it is buried", || {
        if !host.lives() {
            deaths += 1;
            host = start();
        }
        redis.number(&["XLEN", "stream:dead_letter"]) == 1 && redis.number(&["XLEN", "stream:good_out"]) == 200
    });
    assert_eq!(deaths, 1, "only the first time, before anybody knew");
    assert!(redis.cli(&["XRANGE", "stream:dead_letter", "-", "+"]).contains("host-crashes"));
}
