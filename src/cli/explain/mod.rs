//! `explain`
use super::Context;
use crate::error::Result;
#[derive(Debug, clap::Args)]
pub struct Args {}
pub fn run(_: &Context, _: &Args) -> Result<()> { Ok(()) }
