//! The `kontiki` binary: picks a subcommand.

use kontiki::cli::{bench, exit::Exit, help, inspect, run, serve, sim};
use std::ffi::OsString;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let Some(word) = args.next() else {
        return print(&mut io::stderr(), help::help(None), Exit::Usage).into();
    };
    let rest: Vec<OsString> = args.collect();
    match word.to_string_lossy().as_ref() {
        "serve" => serve::serve(&rest),
        "cli" => run::main(&rest),
        "sim" => sim::sim(&rest),
        "bench" => bench::run(&rest, &mut BufWriter::new(io::stdout()), &mut io::stderr()),
        "inspect" => inspect::run(&rest, &mut BufWriter::new(io::stdout()), &mut io::stderr()),
        "version" | "--version" | "-V" => {
            print(&mut io::stdout(), Ok(help::version() + "\n"), Exit::Done)
        }
        "help" | "--help" | "-h" => {
            let topic = rest.first().map(|word| word.to_string_lossy());
            print(&mut io::stdout(), help::help(topic.as_deref()), Exit::Done)
        }
        other => print(&mut io::stdout(), Err(help::unknown(other)), Exit::Usage),
    }
    .into()
}

/// Prints a text and ends with `exit`; an error goes to standard error and is wrong usage.
fn print(output: &mut dyn Write, text: Result<String, String>, exit: Exit) -> Exit {
    match text {
        Ok(text) if output.write_all(text.as_bytes()).is_ok() => exit,
        Ok(_) => Exit::Unavailable,
        Err(why) => {
            // Without standard error there is the exit code.
            let _ = writeln!(io::stderr(), "kontiki: {why}");
            Exit::Usage
        }
    }
}
