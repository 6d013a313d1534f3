//! (being written)
use crate::cli::Common;
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}
pub(crate) async fn run(_common: &Common, _args: Args) -> anyhow::Result<()> {
    Ok(())
}
