use cofferdam_model::ReasonCode::{HostCrashes, Trap};
use cofferdam_tests::{Host, Place, Redis, guest, program_with_mutants, publish, wait_until};

use super::Expect::{Compiles, Fault, Handled, NotWhole, OneIn, Refused};
use super::{Entry, Guest, arena, entry};

pub(crate) const ENTRIES: &[Entry] = &[
    entry!(
        61,
        "loops nested 900 deep over 400 locals",
        "cap on nested loops",
        Guest::new("61-nested-loops", Refused("caps", "loops nested in one function"))
    ),
    entry!(62, "50,000 functions", "compiled apart, within its bounds", Guest::new("62-many-functions", Compiles)),
    entry!(
        63,
        "function of 200,000 instructions",
        "compiled apart, within its bounds",
        Guest::new("63-long-function", Compiles)
    ),
    entry!(
        64,
        "49,000 locals",
        "cap on locals",
        Guest::new("64-many-locals", Refused("caps", "49000 locals in one function"))
    ),
    entry!(
        65,
        "branch table of 100,000",
        "the compiler's own limit, apart",
        Guest::new("65-large-br-table", Refused("compile", "`br_table` has 100000 targets"))
    ),
    entry!(
        66,
        "50,000 loads and stores",
        "compiled apart, within its bounds",
        Guest::new("66-loads-and-stores", Compiles)
    ),
    entry!(
        67,
        "calls with 1,000 results",
        "compiled apart, within its bounds",
        Guest::new("67-thousand-results", Compiles)
    ),
    entry!(
        68,
        "component of 10^5 types",
        "compiled apart; contract's exports",
        Guest::new("68-many-types", Refused("world", "it exports nothing"))
    ),
    entry!(
        69,
        "component of 1,000 core instances",
        "the compiler's own limit, apart",
        Guest::new("69-many-instances", Refused("compile", "instances count exceeds limit"))
    ),
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
    arena::run("load", ENTRIES).await;
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
