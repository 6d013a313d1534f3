//! What the user typed. What it means is the commands' affair.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::commands;
use crate::jail::Bounds;

/// Runs sandboxed WebAssembly handlers over Redis Streams: nothing is lost, doubled or let out.
#[derive(Debug, Parser)]
#[command(name = "cofferdam", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Flags of every verb.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Common {
    /// Configuration file [default: ./cofferdam.toml for `run`, else the user's configuration folder]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Everywhere")]
    pub(crate) config: Option<PathBuf>,
    /// Redis to use: redis://host:port/db, redis+unix:///path or redis+sentinel://host:port,host:port/master-name [default: the running host's]
    #[arg(long, global = true, value_name = "URL", help_heading = "Everywhere")]
    pub(crate) redis: Option<String>,
    /// Where state is kept [default: the user's state folder]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Everywhere")]
    pub(crate) data: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) json: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Watch the whole story on real honeypot events: crash, retry, dead letters, fixed version, redrive
    Demo(commands::demo::Args),
    /// Run a host: watch a folder of plugins and run them over the streams
    Run(commands::run::Args),
    /// Check a plugin, place it in the running host's folder and wait until it is live
    Deploy(commands::deploy::Args),
    /// Let a version run that asks for more than its plugin has been allowed so far
    Approve(commands::approve::Args),
    /// Publish JSON events from files or standard input into a stream
    Publish(commands::publish::Args),
    /// Print the entries of a stream, and follow it
    Tail(commands::tail::Args),
    /// Hosts, plugins, lag and failures at one glance
    Status(commands::status::Args),
    /// The plugins of the running hosts: versions, state, why one is not live
    Plugins(commands::plugins::Args),
    /// The versions of a plugin: how each has fared, and what was done about them
    History(commands::history::Args),
    /// Run an earlier version of a plugin on every host, whatever stands in its folder
    Rollback(commands::rollback::Args),
    /// End a rollback: run what stands in the folder again
    Unpin(commands::rollback::UnpinArgs),
    /// Streams and their consumer groups: length, lag, pending, parked
    Streams(commands::streams::Args),
    /// Run a plugin over its own cases and recorded logs, without a Redis
    Test(commands::test::Args),
    /// What a plugin is and asks for, without running it
    Inspect(commands::inspect::Args),
    /// Run unknown code in a sealed process, with everything denied, and say what it did
    Detonate(commands::detonate::Args),
    /// Dead letters: look, send back, discard
    Dlq(commands::dlq::Args),
    /// Check on the live system that nothing was lost or doubled
    Verify(commands::verify::Args),
    /// Check this machine and its Redis, and say what to mend
    Doctor(commands::doctor::Args),
    /// Measure this machine: the sandboxed host beside the same loop without sandbox and fence
    Bench(commands::bench::Args),
    /// What a host starts to run a suspect in; not for people
    #[command(hide = true)]
    RunApart(JailArgs),
    /// What a host starts to compile a plugin in; not for people
    #[command(hide = true)]
    CompileApart(JailArgs),
}

/// What a child of this program is told of its jail.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct JailArgs {
    #[arg(long)]
    memory_bytes: u64,
    #[arg(long)]
    cpu_seconds: Option<u64>,
}

impl JailArgs {
    /// The bounds that it enters with.
    pub(crate) fn bounds(self) -> Bounds {
        Bounds { memory_bytes: self.memory_bytes, cpu: self.cpu_seconds.map(Duration::from_secs) }
    }
}
