//! The functions of the contract that a guest may call: `log` and `config`. WASI's are in `wasi.rs`.

use crate::bindings::{config, log, types};
use crate::invoke::LogLevel;
use crate::store::State;

impl types::Host for State {}

impl log::Host for State {
    fn write(&mut self, level: log::Level, line: String) -> wasmtime::Result<()> {
        self.host_call("cofferdam:plugin/log#write")?;
        let level = match level {
            log::Level::Debug => LogLevel::Debug,
            log::Level::Info => LogLevel::Info,
            log::Level::Warn => LogLevel::Warn,
            log::Level::Error => LogLevel::Error,
        };
        self.console().line(level, line);
        Ok(())
    }
}

impl config::Host for State {
    fn get(&mut self, key: String) -> wasmtime::Result<Option<String>> {
        self.host_call("cofferdam:plugin/config#get")?;
        Ok(self.spec.config.get(&key).cloned())
    }
}
