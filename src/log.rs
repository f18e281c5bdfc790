//! `MOE_LOG=off|warn|info|trace`, written to stderr; and `MOE_CHECK`.

use std::sync::LazyLock;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Off,
    Warn,
    Info,
    Trace,
}

static LEVEL: LazyLock<Level> = LazyLock::new(|| match std::env::var("MOE_LOG").as_deref() {
    Ok("trace") => Level::Trace,
    Ok("info") => Level::Info,
    Ok("warn") => Level::Warn,
    _ => Level::Off,
});

static CHECK: LazyLock<bool> = LazyLock::new(|| std::env::var("MOE_CHECK").is_ok_and(|v| v == "1"));

/// Whether `MOE_CHECK=1` asks for pointer checks and for a synchronisation after each call.
pub fn check_enabled() -> bool {
    *CHECK
}

pub fn warn(text: impl FnOnce() -> String) {
    write(Level::Warn, text);
}

pub fn info(text: impl FnOnce() -> String) {
    write(Level::Info, text);
}

/// What is needed to replay a call, written before its launch.
pub fn trace(text: impl FnOnce() -> String) {
    write(Level::Trace, text);
}

fn write(level: Level, text: impl FnOnce() -> String) {
    if *LEVEL >= level {
        use std::io::Write;
        // A closed stderr must not turn into a panic.
        let _ = writeln!(std::io::stderr(), "libmoe: {}", text());
    }
}
