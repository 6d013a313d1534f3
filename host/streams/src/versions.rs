//! Versions of plugins that hosts have admitted: their files, how they have fared over all hosts, and which one is pinned.

use std::collections::{BTreeMap, HashMap};

use cofferdam_model::trial::Fared;
use serde::{Deserialize, Serialize};

use crate::keys::{MARK_KEY, PINS_KEY, version_key, versions_key};
use crate::operator_log::Act;
use crate::{Store, StreamError};

/// The files of a version, as they were admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionFiles {
    /// The WebAssembly.
    pub wasm: Vec<u8>,
    /// The text of its manifest.
    pub manifest: String,
    /// The name of the file or folder they came in.
    pub file_name: String,
    /// Who vouches for it, when somebody does.
    pub signature: Option<String>,
}

/// What is known of a version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionFacts {
    /// Its digest.
    pub digest: String,
    /// When a host first ran it, in milliseconds since 1970.
    pub first_ms: u64,
    /// Which host that was.
    pub host: String,
    /// The digest of the version that it took over from; empty for a first one.
    pub before: String,
    /// Bytes of its wasm.
    pub bytes: u64,
    /// Deliveries that ended well, over all hosts.
    #[serde(default)]
    pub ok: u64,
    /// Deliveries that failed.
    #[serde(default)]
    pub failed: u64,
    /// Why it was rolled back; empty when it was not.
    #[serde(default)]
    pub bad: String,
    /// When that was, in milliseconds since 1970; 0 when it was not, or nobody noted it.
    #[serde(default)]
    pub bad_ms: u64,
    /// Since when its deliveries are counted, in milliseconds since 1970, when its pin was ended and they were counted anew; else 0.
    #[serde(default)]
    pub anew_ms: u64,
    /// Whether its first deliveries have been looked at and found no worse than those of the version before.
    #[serde(default)]
    pub proved: bool,
}

impl VersionFacts {
    /// How its deliveries ended.
    pub fn fared(&self) -> Fared {
        Fared { ok: self.ok, failed: self.failed }
    }
}

/// A version that a plugin is held to on every host, whatever stands in the folders.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The version that runs.
    pub digest: String,
    /// The version that it replaced.
    pub instead_of: String,
    /// Who did it: a person, or the host that saw it fail.
    pub by: String,
    /// Why.
    pub why: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

/// Fields of a version in the hash of its plugin, after its digest.
const ABOUT: &str = "";
const OK: &str = ":ok";
const FAILED: &str = ":failed";
const BAD: &str = ":bad";
const BAD_MS: &str = ":bad_ms";
const ANEW_MS: &str = ":anew_ms";
const PROVED: &str = ":proved";

impl Store {
    /// Notes that a version has gone live. Says whether it was news: a version is noted once.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn note_version(&self, plugin: &str, facts: &VersionFacts) -> Result<bool, StreamError> {
        let text = serde_json::to_string(facts).expect("strings and numbers always serialize");
        self.query(redis::cmd("HSETNX").arg(versions_key(plugin)).arg(format!("{}{ABOUT}", facts.digest)).arg(text))
            .await
    }

    /// Keeps the files of a version for every host.
    ///
    /// # Errors
    /// Whatever Redis answers, at its memory limit too.
    pub async fn keep_files(&self, digest: &str, files: &VersionFiles) -> Result<(), StreamError> {
        let mut command = redis::cmd("HSET");
        command.arg(version_key(digest)).arg("wasm").arg(&files.wasm).arg("manifest").arg(&files.manifest);
        command.arg("file_name").arg(&files.file_name);
        if let Some(signature) = &files.signature {
            command.arg("signature").arg(signature);
        }
        self.query(&command).await
    }

    /// The files of a version, if they are kept here.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn files(&self, digest: &str) -> Result<Option<VersionFiles>, StreamError> {
        let mut command = redis::cmd("HMGET");
        command.arg(version_key(digest)).arg("wasm").arg("manifest").arg("file_name").arg("signature");
        let (wasm, manifest, file_name, signature): (Option<Vec<u8>>, Option<String>, Option<String>, Option<String>) =
            self.query(&command).await?;
        let files =
            |(wasm, manifest)| VersionFiles { wasm, manifest, file_name: file_name.unwrap_or_default(), signature };
        Ok(wasm.zip(manifest).map(files))
    }

    /// Whether the files of a version are kept here.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn has_files(&self, digest: &str) -> Result<bool, StreamError> {
        self.query(redis::cmd("EXISTS").arg(version_key(digest))).await
    }

    /// Forgets a version: its files, and what is known of it.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn forget_version(&self, plugin: &str, digest: &str) -> Result<(), StreamError> {
        let mut pipe = redis::pipe();
        let forget = pipe.cmd("HDEL").arg(versions_key(plugin));
        for field in [ABOUT, OK, FAILED, BAD, BAD_MS, ANEW_MS, PROVED] {
            forget.arg(format!("{digest}{field}"));
        }
        pipe.ignore().cmd("DEL").arg(version_key(digest)).ignore();
        self.pipeline(&pipe).await
    }

    /// Adds to the counts of versions, given as (plugin, digest, counts).
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn count_versions(&self, counts: &[(String, String, Fared)]) -> Result<(), StreamError> {
        let mut pipe = redis::pipe();
        for (plugin, digest, fared) in counts {
            for (field, count) in [(OK, fared.ok), (FAILED, fared.failed)] {
                if count > 0 {
                    pipe.cmd("HINCRBY").arg(versions_key(plugin)).arg(format!("{digest}{field}")).arg(count).ignore();
                }
            }
        }
        self.pipeline(&pipe).await
    }

    /// All versions of a plugin that are known, the newest first.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn versions(&self, plugin: &str) -> Result<Vec<VersionFacts>, StreamError> {
        let fields: HashMap<String, String> = self.query(redis::cmd("HGETALL").arg(versions_key(plugin))).await?;
        let mut versions: Vec<VersionFacts> = Vec::new();
        for (digest, text) in fields.iter().filter(|(name, _)| !name.contains(':')) {
            let Ok(mut facts) = serde_json::from_str::<VersionFacts>(text) else { continue };
            let of = |field: &str| fields.get(&format!("{digest}{field}"));
            let number = |field: &str| of(field).and_then(|text| text.parse().ok()).unwrap_or(0);
            (facts.ok, facts.failed) = (number(OK), number(FAILED));
            facts.bad = of(BAD).cloned().unwrap_or_default();
            (facts.bad_ms, facts.anew_ms) = (number(BAD_MS), number(ANEW_MS));
            facts.proved = of(PROVED).is_some();
            versions.push(facts);
        }
        versions.sort_by(|a, b| (b.first_ms, &b.digest).cmp(&(a.first_ms, &a.digest)));
        Ok(versions)
    }

    /// Notes that a version has proved itself.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn prove_version(&self, plugin: &str, digest: &str) -> Result<(), StreamError> {
        self.query(redis::cmd("HSET").arg(versions_key(plugin)).arg(format!("{digest}{PROVED}")).arg(1)).await
    }

    /// Every pin there is, by plugin.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn pins(&self) -> Result<BTreeMap<String, Pin>, StreamError> {
        let fields: HashMap<String, String> = self.query(redis::cmd("HGETALL").arg(PINS_KEY)).await?;
        let read = |(plugin, text): (String, String)| Some((plugin, serde_json::from_str(&text).ok()?));
        Ok(fields.into_iter().filter_map(read).collect())
    }

    /// The mark of the data that this Redis holds, `fresh` if it had none: another one than before says that it was emptied, or that
    /// another Redis has taken its place. To be asked for after what it is to vouch for.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn mark(&self, fresh: &str) -> Result<String, StreamError> {
        let get = || redis::cmd("GET").arg(MARK_KEY).to_owned();
        if let Some(mark) = self.query(&get()).await? {
            return Ok(mark);
        }
        let _: Option<String> = self.query(redis::cmd("SET").arg(MARK_KEY).arg(fresh).arg("NX")).await?;
        self.query(&get()).await
    }

    /// Notes a pin again that Redis has lost, unless the plugin has one.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn pin_again(&self, plugin: &str, pin: &Pin) -> Result<(), StreamError> {
        let text = serde_json::to_string(pin).expect("strings and numbers always serialize");
        self.query(redis::cmd("HSETNX").arg(PINS_KEY).arg(plugin).arg(text)).await
    }

    /// Pins a plugin to a version, marks the one that it replaces as bad, and writes the act down: all or nothing.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn pin(&self, plugin: &str, pin: &Pin, act: &Act<'_>) -> Result<(), StreamError> {
        let text = serde_json::to_string(pin).expect("strings and numbers always serialize");
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("HSET").arg(PINS_KEY).arg(plugin).arg(text).ignore();
        if !pin.instead_of.is_empty() {
            let why = if pin.why.is_empty() { "rolled back" } else { &pin.why };
            let of = |field: &str| format!("{}{field}", pin.instead_of);
            pipe.cmd("HSET").arg(versions_key(plugin)).arg(of(BAD)).arg(why).arg(of(BAD_MS)).arg(pin.at_ms).ignore();
            let good = [BAD, BAD_MS].map(|field| format!("{}{field}", pin.digest));
            pipe.cmd("HDEL").arg(versions_key(plugin)).arg(&good).ignore();
        }
        pipe.add_command(act.command()).ignore();
        self.pipeline(&pipe).await
    }

    /// Takes a plugin's pin away and writes the act down; whether there was one. What runs from then on is judged by what it does
    /// from then on: how those have fared that were rolled back is forgotten, and noted to be counted since `now_ms`.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn unpin(&self, plugin: &str, now_ms: u64, act: &Act<'_>) -> Result<bool, StreamError> {
        if self.query::<Option<String>>(redis::cmd("HGET").arg(PINS_KEY).arg(plugin)).await?.is_none() {
            return Ok(false);
        }
        let known = self.versions(plugin).await?;
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("HDEL").arg(PINS_KEY).arg(plugin).ignore();
        for facts in known.iter().filter(|facts| !facts.bad.is_empty()) {
            let counts = [OK, FAILED, PROVED].map(|field| format!("{}{field}", facts.digest));
            pipe.cmd("HDEL").arg(versions_key(plugin)).arg(&counts).ignore();
            pipe.cmd("HSET").arg(versions_key(plugin)).arg(format!("{}{ANEW_MS}", facts.digest)).arg(now_ms).ignore();
        }
        pipe.add_command(act.command()).ignore();
        let () = self.pipeline(&pipe).await?;
        Ok(true)
    }
}
