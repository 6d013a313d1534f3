//! Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 environment.

use std::process::ExitCode;

/// Something outside is missing or refuses: a server, a program, a running host. Exit code 3.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Environment(pub(crate) String);

/// What was asked was done, and the answer is no: something is lost, a check does not hold. Exit code 1, already reported.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Failed(pub(crate) String);

/// What was asked cannot be understood: a wrong flag, a wrong configuration. Exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// The exit code of an error.
pub(crate) fn code(error: &anyhow::Error) -> ExitCode {
    use cofferdam_streams::StreamError;
    let mut code = 1;
    for cause in error.chain() {
        if cause.is::<Environment>() {
            code = 3;
        } else if cause.is::<Usage>()
            || cause.is::<toml::de::Error>()
            || cause.is::<crate::manifest::TomlError>()
            || cause.is::<crate::manifest::ManifestError>()
        {
            code = 2;
        } else if let Some(stream) = cause.downcast_ref::<StreamError>() {
            let outside = matches!(
                stream,
                StreamError::Unreachable { .. }
                    | StreamError::Denied { .. }
                    | StreamError::Unsuitable { .. }
                    | StreamError::NotReady { .. }
            );
            if outside {
                code = 3;
            }
        }
    }
    ExitCode::from(code)
}
