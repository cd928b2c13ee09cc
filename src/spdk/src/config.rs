//! SPDK's JSON configuration: a list of JSON-RPC calls by subsystem, made in two rounds.
//!
//! Calls allowed before the subsystems start are made then, the others after. We make them ourselves, rather than SPDK's
//! loader, because that only logs which call failed and why.

use std::ffi::CString;

use serde_json::{Value, json};
use spdk_sys as sys;

use crate::error::{ConfigError, RpcError};
use crate::options::Config;
use crate::rpc;

/// When a call is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    BeforeStart,
    AfterStart,
}

#[derive(Debug)]
struct Call {
    subsystem: String,
    method: String,
    params: Value,
}

/// A configuration, read and found to be in the right form.
#[derive(Debug, Default)]
pub(crate) struct Calls(Vec<Call>);

impl Calls {
    pub fn read(config: &Config) -> Result<Self, ConfigError> {
        match config {
            Config::None => Ok(Calls::default()),
            Config::Json(text) => Self::parse(text),
            Config::File(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read {
                    path: path.clone(),
                    error,
                })?;
                Self::parse(&text)
            }
        }
    }

    fn parse(text: &str) -> Result<Self, ConfigError> {
        let shape = |what: &str| ConfigError::Shape(what.to_owned());
        let mut root: Value = serde_json::from_str(text)?;
        let Some(subsystems) = root.get_mut("subsystems") else {
            return Err(shape("it has no \"subsystems\""));
        };
        let Value::Array(subsystems) = subsystems.take() else {
            return Err(shape("\"subsystems\" is not a list"));
        };
        let mut calls = Vec::new();
        for mut subsystem in subsystems {
            let name = subsystem["subsystem"]
                .as_str()
                .ok_or_else(|| shape("an entry of \"subsystems\" has no \"subsystem\""))?
                .to_owned();
            let list = match subsystem.get_mut("config").map(Value::take) {
                None | Some(Value::Null) => continue,
                Some(Value::Array(list)) => list,
                Some(_) => return Err(shape("\"config\" is neither a list nor null")),
            };
            for mut call in list {
                calls.push(Call {
                    subsystem: name.clone(),
                    method: call["method"]
                        .as_str()
                        .ok_or_else(|| shape("an entry of \"config\" has no \"method\""))?
                        .to_owned(),
                    params: call.get_mut("params").map(Value::take).unwrap_or_default(),
                });
            }
        }
        Ok(Calls(calls))
    }

    /// Makes the calls of a round, in order; the first that fails ends it. On the main reactor.
    pub async fn make(&self, round: Round) -> Result<(), ConfigError> {
        for call in &self.0 {
            let Some(allowed) = allowed_in(&call.method) else {
                if !subsystem_exists(&call.subsystem) {
                    // One configuration may serve several programs, with other subsystems in them.
                    tracing::warn!(
                        subsystem = call.subsystem,
                        method = call.method,
                        "skipped: this subsystem is not built in"
                    );
                    continue;
                }
                return Err(ConfigError::UnknownMethod {
                    subsystem: call.subsystem.clone(),
                    method: call.method.clone(),
                });
            };
            if allowed != round {
                continue;
            }
            rpc::call_here(&call.method, call.params.clone())
                .await
                .map_err(|error| ConfigError::Call {
                    subsystem: call.subsystem.clone(),
                    method: call.method.clone(),
                    error,
                })?;
        }
        Ok(())
    }
}

/// What we want of any SPDK before a configuration can say otherwise.
///
/// Its NVMe driver answers flushes without sending them to the controller unless this is set: a journal on a disk with
/// a volatile cache would be no journal.
pub(crate) async fn make_safe() -> Result<(), RpcError> {
    rpc::call_here("bdev_nvme_set_options", json!({ "enable_flush": true })).await?;
    Ok(())
}

/// When a method may be called; None if there is no such method. One that is allowed in both rounds is called in the
/// first, and once.
fn allowed_in(method: &str) -> Option<Round> {
    let method = CString::new(method).ok()?;
    let mut mask = 0;
    // SAFETY: a C string and a place for the answer, both live during the call.
    let found = unsafe { sys::spdk_rpc_get_method_state_mask(method.as_ptr(), &mut mask) };
    (found == 0).then_some(if mask & sys::SPDK_RPC_STARTUP != 0 {
        Round::BeforeStart
    } else {
        Round::AfterStart
    })
}

fn subsystem_exists(name: &str) -> bool {
    // SAFETY: a C string that lives during the call, made on SPDK's main thread, which `rpc` requires as well.
    CString::new(name).is_ok_and(|name| unsafe { sys::spdk_subsystem_exists(name.as_ptr()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_spdks_form() {
        let text = r#"{"subsystems": [
            {"subsystem": "bdev", "config": [
                {"method": "bdev_malloc_create", "params": {"num_blocks": 8, "block_size": 512}},
                {"method": "bdev_wait_for_examine"}]},
            {"subsystem": "sock", "config": null},
            {"subsystem": "iobuf"}]}"#;
        let calls = Calls::parse(text).unwrap();
        assert_eq!(calls.0.len(), 2);
        assert_eq!(calls.0[0].method, "bdev_malloc_create");
        assert_eq!(calls.0[0].params["num_blocks"], 8);
        assert!(calls.0[1].params.is_null());
    }

    #[test]
    fn says_what_is_wrong_with_others() {
        for (text, what) in [
            ("{", "JSON"),
            ("[]", "subsystems"),
            (r#"{"subsystems": 3}"#, "not a list"),
            (r#"{"subsystems": [{}]}"#, "\"subsystem\""),
            (
                r#"{"subsystems": [{"subsystem": "bdev", "config": 1}]}"#,
                "neither",
            ),
            (
                r#"{"subsystems": [{"subsystem": "bdev", "config": [{}]}]}"#,
                "\"method\"",
            ),
        ] {
            let error = Calls::parse(text).expect_err(text).to_string();
            assert!(error.contains(what), "{text}: {error}");
        }
    }
}
