//! `completions` and `man`: made from the same description of the command line that parses it.

use super::args::Cli;
use super::{exit, print};
use anyhow::Result;
use clap::CommandFactory as _;
use clap_complete::Shell;
use std::path::Path;
use std::process::ExitCode;

/// `completions`
pub fn completions(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "slurm-factory", &mut script);
    match print(&String::from_utf8_lossy(&script)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// `man`
pub fn man(dir: Option<&Path>) -> Result<ExitCode> {
    if let Some(dir) = dir {
        fs_err::create_dir_all(dir).map_err(|e| exit::HostFault(format!("manual pages: {e}; name another folder")))?;
        clap_mangen::generate_to(Cli::command(), dir)
            .map_err(|e| exit::HostFault(format!("manual pages cannot be written to `{}`: {e}", dir.display())))?;
    } else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page)?;
        print(&String::from_utf8_lossy(&page))?;
    }
    Ok(ExitCode::SUCCESS)
}
