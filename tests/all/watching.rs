//! The ways in which files come into a watched folder: each new version is seen in time, and nothing that is not whole.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cofferdam_sandbox::Digest;
use cofferdam_tests::{Host, Place, Redis, comes_true, guest, wait_until};

use crate::operators::is_full;

/// How soon a new version must be live.
const SEEN_WITHIN: Duration = Duration::from_secs(6);

/// The actor as version `number`: the bytes differ behind the component's own end, in a section for remarks, so that all of it
/// but its tail is an older version that works.
fn wasm(number: usize) -> Vec<u8> {
    let mut bytes = guest("test/actor.wasm");
    let (name, text) = (b"release", format!("{number:08}"));
    bytes.extend([0, u8::try_from(1 + name.len() + text.len()).unwrap(), u8::try_from(name.len()).unwrap()]);
    bytes.extend(name);
    bytes.extend(text.as_bytes());
    bytes
}

/// A manifest that vouches for the bytes, or one that vouches for none.
fn manifest(sealed: Option<&[u8]>) -> String {
    let seal = sealed.map_or_else(String::new, |wasm| format!("sha256 = \"{}\"\n", Digest::of(wasm)));
    format!("{seal}subscribe = [\"stream:in\"]\nemit = [\"stream:out\"]\nstart = \"oldest\"\n")
}

/// Puts a file in place at once.
fn put(path: &Path, bytes: &[u8]) {
    let beside = path.with_file_name(format!(".{}.new", path.file_name().unwrap().to_string_lossy()));
    fs::write(&beside, bytes).unwrap();
    fs::rename(beside, path).unwrap();
}

/// Writes over a file as slow tools do: empty first, then in pieces, the last of which is only its end.
fn write_slowly(path: &Path, bytes: &[u8]) {
    let mut file = fs::File::create(path).unwrap();
    let (body, tail) = bytes.split_at(guest("test/actor.wasm").len());
    for piece in body.chunks(body.len().div_ceil(4)).chain([tail]) {
        file.write_all(piece).unwrap();
        file.sync_data().unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn rounds() -> usize {
    if is_full() { 100 } else { 5 }
}

/// How often a plugin went live.
fn lives(host: &Host, plugin: &str) -> usize {
    host.log().matches(&format!("live plugin=\"{plugin}\"")).count()
}

/// Does something to the files once a round, from version 1 on, and looks whether each version goes live in time, and nothing
/// else does.
fn each_is_seen(what: &str, place: &Place, host: &Host, plugin: &str, mut change: impl FnMut(&Place, usize)) {
    let mut longest = Duration::ZERO;
    for round in 1..=rounds() {
        change(place, round);
        let began = Instant::now();
        let seen = comes_true(SEEN_WITHIN, || lives(host, plugin) > round);
        assert!(seen, "{what}: version {round} was not seen within {SEEN_WITHIN:?}");
        longest = longest.max(began.elapsed());
        assert_eq!(lives(host, plugin), round + 1, "{what}: something else went live beside version {round}");
    }
    println!("{what}: {} versions, each seen within {longest:?}", rounds());
    assert!(!host.log().contains("refused:"), "{what}: something that is not whole was tried: {}", host.log());
}

fn start(place: &Place, redis: &Redis, plugin: &str) -> Host {
    let host = place.host(redis, 1);
    wait_until("version 0 is live", || lives(&host, plugin) == 1);
    host
}

fn files(place: &Place, plugin: &str) -> (PathBuf, PathBuf) {
    (place.plugins().join(format!("{plugin}.wasm")), place.plugins().join(format!("{plugin}.toml")))
}

fn first_version(place: &Place, plugin: &str, sealed: bool) {
    let (wasm_file, manifest_file) = files(place, plugin);
    fs::write(&wasm_file, wasm(0)).unwrap();
    fs::write(manifest_file, manifest(sealed.then(|| wasm(0)).as_deref())).unwrap();
}

#[test]
fn a_file_renamed_over_another_is_seen() {
    let (redis, place) = (Redis::start(), Place::new());
    first_version(&place, "actor", false);
    let host = start(&place, &redis, "actor");
    each_is_seen("rename over, nothing vouched for", &place, &host, "actor", |place, round| {
        put(&files(place, "actor").0, &wasm(round));
    });
}

#[test]
fn a_file_renamed_over_another_is_seen_at_once_when_its_manifest_vouches_for_it() {
    let (redis, place) = (Redis::start(), Place::new());
    first_version(&place, "actor", true);
    let host = start(&place, &redis, "actor");
    // The old manifest vouches for the old file alone: between the two renames nothing is whole.
    each_is_seen("rename over, vouched for", &place, &host, "actor", |place, round| {
        put(&files(place, "actor").0, &wasm(round));
        put(&files(place, "actor").1, manifest(Some(&wasm(round))).as_bytes());
    });
}

#[test]
fn a_file_that_is_written_over_slowly_is_seen_when_it_is_whole_and_not_before() {
    let (redis, place) = (Redis::start(), Place::new());
    first_version(&place, "actor", false);
    let host = start(&place, &redis, "actor");
    each_is_seen("truncated and written in pieces", &place, &host, "actor", |place, round| {
        write_slowly(&files(place, "actor").0, &wasm(round));
    });
}

/// A volume as kubernetes mounts a ConfigMap: the names are links through `..data`, which is swapped.
#[test]
fn a_volume_of_kubernetes_whose_data_are_swapped_is_seen() {
    let (redis, place) = (Redis::start(), Place::new());
    let swap = |place: &Place, round: usize| {
        let folder = place.plugins().join(format!("..2026_11_24_{round}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("actor.wasm"), wasm(round)).unwrap();
        fs::write(folder.join("actor.toml"), manifest(Some(&wasm(round)))).unwrap();
        symlink(folder.file_name().unwrap(), place.plugins().join("..data_tmp")).unwrap();
        fs::rename(place.plugins().join("..data_tmp"), place.plugins().join("..data")).unwrap();
        if round > 0 {
            fs::remove_dir_all(place.plugins().join(format!("..2026_11_24_{}", round - 1))).unwrap();
        }
    };
    swap(&place, 0);
    symlink("..data/actor.wasm", place.plugins().join("actor.wasm")).unwrap();
    symlink("..data/actor.toml", place.plugins().join("actor.toml")).unwrap();
    let host = start(&place, &redis, "actor");
    each_is_seen("..data swapped", &place, &host, "actor", swap);
}

#[test]
fn a_folder_that_is_deleted_and_made_again_is_seen() {
    let (redis, place) = (Redis::start(), Place::new());
    first_version(&place, "actor", false);
    let host = start(&place, &redis, "actor");
    each_is_seen("the folder deleted and made again", &place, &host, "actor", |place, round| {
        fs::remove_dir_all(place.plugins()).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        fs::create_dir(place.plugins()).unwrap();
        fs::write(files(place, "actor").1, manifest(None)).unwrap();
        fs::write(files(place, "actor").0, wasm(round)).unwrap();
    });
}

#[test]
fn copies_that_keep_the_time_of_their_source_are_seen() {
    let (redis, place) = (Redis::start(), Place::new());
    first_version(&place, "actor", false);
    let host = start(&place, &redis, "actor");
    let old = |path: &Path| {
        let done = Command::new("touch").args(["-d", "2020-02-02 02:02:02"]).arg(path).status().unwrap();
        assert!(done.success());
    };
    each_is_seen(
        "copied with its time, and replaced with the same size and time",
        &place,
        &host,
        "actor",
        |place, round| {
            let target = files(place, "actor").0;
            if round.is_multiple_of(2) {
                // In place, as an editor does, and then the time of before is put back.
                fs::write(&target, wasm(round)).unwrap();
                old(&target);
            } else {
                let source = place.directory.path().join("source.wasm");
                fs::write(&source, wasm(round)).unwrap();
                old(&source);
                assert!(Command::new("cp").arg("-p").arg(&source).arg(&target).status().unwrap().success());
            }
        },
    );
}

#[test]
fn a_new_version_among_more_events_than_the_kernel_keeps_is_seen() {
    let (redis, place) = (Redis::start(), Place::new());
    first_version(&place, "actor", true);
    let host = start(&place, &redis, "actor");
    let kept: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")
        .unwrap_or_default()
        .trim()
        .parse()
        .unwrap_or(16_384);
    each_is_seen("in a flood of events", &place, &host, "actor", |place, round| {
        // The host does not read while it stands still, so the kernel's queue overflows for certain.
        host.signal(rustix::process::Signal::STOP);
        let mut junk = [".junk0", ".junk1"].map(|name| fs::File::create(place.plugins().join(name)).unwrap());
        for event in 0..kept + 1_000 {
            // One file after the other, because the kernel folds equal events into one.
            junk[event % 2].write_all(b"j").unwrap();
        }
        put(&files(place, "actor").0, &wasm(round));
        put(&files(place, "actor").1, manifest(Some(&wasm(round))).as_bytes());
        host.signal(rustix::process::Signal::CONT);
    });
}
