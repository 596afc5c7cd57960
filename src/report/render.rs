//! Turns events into what people and programs read: a moving line on a terminal, plain lines without one, or
//! JSON lines. All of it goes to standard error; standard output holds results alone.

use super::{Event, Reporter, Stage};
use humansize::{BINARY, format_size};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use owo_colors::{OwoColorize, Style};
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How events are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Whether colours are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColorChoice {
    /// On a terminal that can show them, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Warnings only.
    Quiet,
    /// Stages, packages, notes.
    Normal,
    /// Also the output of the programs that are run.
    Verbose,
}

/// Whether a moving line may be drawn. It takes a thread of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// On a terminal, at normal verbosity.
    OnTerminal,
    /// Never: the terminal is somebody else's, or no thread may be there yet.
    Never,
}

/// The renderer for standard error.
pub fn renderer(format: LogFormat, color: ColorChoice, verbosity: Verbosity, bar: Bar) -> Arc<dyn Reporter> {
    if format == LogFormat::Json {
        return Arc::new(JsonLines);
    }
    let terminal = std::io::stderr().is_terminal();
    match color {
        ColorChoice::Auto => {}
        ColorChoice::Always => anstream::ColorChoice::Always.write_global(),
        ColorChoice::Never => anstream::ColorChoice::Never.write_global(),
    }
    let bar = (bar == Bar::OnTerminal && terminal && verbosity == Verbosity::Normal).then(|| {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4} {wide_msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(125));
        bar
    });
    Arc::new(Human { bar, verbosity, state: Mutex::new(State::default()) })
}

struct JsonLines;

impl Reporter for JsonLines {
    fn event(&self, event: &Event) {
        if let Ok(line) = serde_json::to_string(event) {
            // Standard error may be closed; there is nobody to tell.
            let _ = writeln!(std::io::stderr().lock(), "{line}");
        }
    }
}

#[derive(Default)]
struct State {
    stage: Option<Stage>,
    package: String,
    since: Option<Instant>,
    counts: String,
    last_plain: Option<Instant>,
}

struct Human {
    bar: Option<ProgressBar>,
    verbosity: Verbosity,
    state: Mutex<State>,
}

impl Human {
    fn line(&self, text: &str) {
        let print = || {
            let _ = writeln!(anstream::stderr().lock(), "{text}");
        };
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn normal(&self, text: &str) {
        if self.verbosity >= Verbosity::Normal {
            self.line(text);
        }
    }

    fn moving(&self, text: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(text);
        }
    }
}

impl Reporter for Human {
    fn event(&self, event: &Event) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::StageStarted { stage, detail } => {
                *state = State { stage: Some(*stage), ..State::default() };
                match &self.bar {
                    Some(bar) => {
                        bar.reset_elapsed();
                        bar.set_message(format!("{} {detail}", stage.title()));
                    }
                    None => self.normal(&format!("{:>10} {detail} ...", stage.title().style(heading()))),
                }
            }
            Event::StageDone { stage, detail, seconds, cached } => {
                state.stage = None;
                let how = if *cached { "cached".to_owned() } else { format_seconds(*seconds) };
                self.moving(String::new());
                self.normal(&format!("{:>10} {detail} ({how})", stage.title().style(done())));
            }
            Event::Progress { stage, done, total, unit, current } => {
                let amount = |n: u64| if *unit == "bytes" { format_size(n, BINARY) } else { format!("{n} {unit}") };
                let of = if *total > 0 { format!(" of {}", amount(*total)) } else { String::new() };
                self.moving(format!("{} {}{of} {current}", stage.title(), amount(*done)));
                // Without a terminal, a sign of life every half minute.
                let due = state.last_plain.get_or_insert_with(Instant::now);
                if self.bar.is_none() && due.elapsed() > Duration::from_secs(30) {
                    *due = Instant::now();
                    self.normal(&format!("{:>10} {}{of} {current}", stage.title(), amount(*done)));
                }
            }
            Event::Package { name, state: what, done, total } => {
                let counts = if *total > 0 { format!("[{done}/{total}] ") } else { String::new() };
                if *name != state.package {
                    state.package.clone_from(name);
                    state.since = Some(Instant::now());
                }
                state.counts.clone_from(&counts);
                if what == "installed" || what == "from cache" || what == "failed" {
                    let took = state.since.map(|s| format!(" ({})", format_seconds(s.elapsed().as_secs_f64())));
                    self.normal(&format!("{:>10} {counts}{name} {what}{}", "", took.unwrap_or_default()));
                    if let Some(bar) = &self.bar {
                        bar.reset_elapsed();
                    }
                } else {
                    if what == "building"
                        && let Some(bar) = &self.bar
                    {
                        bar.reset_elapsed();
                    }
                    self.moving(format!("{counts}{name} {what}"));
                }
            }
            Event::Note { text } => self.normal(&format!("{:>10} {text}", "note".style(heading()))),
            Event::Detail { text } => {
                if self.verbosity >= Verbosity::Verbose {
                    self.line(&format!("{:>10} {text}", "detail".style(heading())));
                }
            }
            Event::Warning { text } => self.line(&format!("{:>10} {text}", "warning".style(warning()))),
            Event::LogFile { path, .. } => self.normal(&format!("{:>10} {}", "log".style(heading()), path.display())),
            Event::Output { line, .. } => {
                if self.verbosity >= Verbosity::Verbose {
                    self.line(line);
                }
            }
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn heading() -> Style {
    Style::new().cyan()
}

fn done() -> Style {
    Style::new().green().bold()
}

fn warning() -> Style {
    Style::new().yellow().bold()
}

fn format_seconds(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    // A time is shown to the second; what is cut off does not matter.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let whole = seconds as u64;
    format!("{} min {} s", whole / 60, whole % 60)
}

#[cfg(test)]
mod tests {
    use super::format_seconds;

    #[test]
    fn seconds_are_readable() {
        assert_eq!(format_seconds(0.04), "0.0 s");
        assert_eq!(format_seconds(646.9), "10 min 46 s");
    }
}
