//! The program: the sandbox helper's entry first, before any thread exists, then parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    // A user namespace can only be entered by a process with one thread, so this stands before everything.
    slurm_factory::sandbox::init_if_helper();
    slurm_factory::fsutil::delete_others_by(slurm_factory::sandbox::remove_of_range);
    slurm_factory::cli::main()
}
