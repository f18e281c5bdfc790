//! Runs a test in a child process whose `libcuda.so.1` is the mock of tests/mock/cuda.c.

use std::any::type_name_of_val;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::{env, fs};

const IN_CHILD: &str = "MOCK_LOG";

/// Which driver a test meets.
pub enum Driver<'a> {
    Mock,
    /// The mock without one symbol.
    Lacking(&'a str),
    /// A file that is no library.
    Broken,
}

/// Runs `body`, the whole of a `#[test]`, in a child process with the driver and the environment that are given.
pub fn with_driver(driver: Driver, environment: &[(&str, &str)], body: impl FnOnce()) {
    if env::var_os(IN_CHILD).is_some() {
        return body();
    }
    // "moe::cuda::tests::name::{{closure}}" without the crate is the test's name.
    let path = type_name_of_val(&body);
    let name = path.split_once("::").unwrap().1.trim_end_matches("::{{closure}}");
    let log = scratch().join(format!("{}-{}.log", name.replace("::", "-"), std::process::id()));
    let output = Command::new(env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env("LD_LIBRARY_PATH", folder(driver))
        .env(IN_CHILD, &log)
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let calls = fs::read_to_string(&log).unwrap_or_default();
    let _ = fs::remove_file(&log);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{name} in its child:\n{text}\nCalls:\n{calls}");
}

pub fn with_mock(environment: &[(&str, &str)], body: impl FnOnce()) {
    with_driver(Driver::Mock, environment, body);
}

/// The calls since the last look, one line each.
pub fn calls() -> Vec<String> {
    let log = env::var_os(IN_CHILD).unwrap();
    let text = fs::read_to_string(&log).unwrap_or_default();
    let _ = fs::remove_file(&log);
    text.lines().map(str::to_owned).collect()
}

/// `key=value` of a call's line.
pub fn field<'a>(call: &'a str, key: &str) -> &'a str {
    let mut fields = call.split(' ').filter_map(|part| part.split_once('='));
    fields.find(|(name, _)| *name == key).unwrap_or_else(|| panic!("{call} has no {key}")).1
}

/// Beside the test's executable.
fn scratch() -> PathBuf {
    let folder = env::current_exe().unwrap().with_file_name("mock");
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// A folder with the libcuda.so.1 that is asked for, made once a run.
fn folder(driver: Driver) -> PathBuf {
    static MADE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let (name, option) = match &driver {
        Driver::Mock => ("whole", None),
        Driver::Lacking(symbol) => (*symbol, Some(format!("-D{symbol}=mock_has_none"))),
        Driver::Broken => ("broken", None),
    };
    let folder = scratch().join(name);
    let library = folder.join("libcuda.so.1");
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if !made.insert(folder.clone()) {
        return folder;
    }
    fs::create_dir_all(&folder).unwrap();
    if matches!(driver, Driver::Broken) {
        fs::write(library, "no library").unwrap();
        return folder;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mock/cuda.c");
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    let status = Command::new(compiler)
        .args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"])
        .args(option)
        .args(["-o".as_ref(), library.as_os_str(), source.as_os_str()])
        .status();
    assert!(status.expect("a C compiler").success(), "the mock does not compile");
    folder
}
