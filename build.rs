//! Compiles kernels/*.cu to fatbins that the library carries, and names the shared library.
//!
//! `MOE_CUDA_ARCHS` says for which GPUs: a list such as "80;90a" of architectures (machine code), in which
//! "compute_80" is PTX that the driver compiles for any GPU from 8.0 on; or "all", what releases carry. Without it
//! machine code for 8.x and 9.0 is made, and PTX for all others, which costs no further compilation.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fmt::Write;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

const DEFAULT_ARCHS: &str = "80;90a;compute_80";
const ALL_ARCHS: &str = "80;89;90a;100;120;compute_80";
/// The first toolkit that knows every architecture of ALL_ARCHS.
const OLDEST_TOOLKIT: Version = (12, 8);

type Version = (u32, u32);
type Result<T> = std::result::Result<T, String>;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        link_arguments();
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_some()
        && let Err(error) = compile_kernels()
    {
        eprintln!("\nlibmoe: {error}\n");
        std::process::exit(1);
    }
}

fn link_arguments() {
    let major = env::var("CARGO_PKG_VERSION_MAJOR").unwrap();
    // nodelete: a library with thread-locals that have destructors must outlive dlclose.
    for argument in [format!("-soname,libmoe.so.{major}"), "-z,nodelete".into(), "-z,now".into()] {
        println!("cargo:rustc-cdylib-link-arg=-Wl,{argument}");
    }
}

fn compile_kernels() -> Result<()> {
    // The header is what the kernels' parameters refer to.
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-changed=include/moe.h");
    for variable in ["MOE_CUDA_ARCHS", "NVCC", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let archs = match env::var("MOE_CUDA_ARCHS").as_deref() {
        Ok("all") => ALL_ARCHS.into(),
        Ok("") | Err(_) => DEFAULT_ARCHS.into(),
        Ok(list) => list.to_owned(),
    };
    let targets = targets(&archs)?;
    let (nvcc, version) = find_nvcc()?;
    let folder = PathBuf::from(env::var("OUT_DIR").unwrap()).join("kernels");
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;

    let sources = sources()?;
    remove_leftovers(&folder, &sources);
    let units: Vec<Unit> = sources.iter().map(|s| Unit::new(s, &nvcc, version, &targets, &folder)).collect();
    let workers = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1).min(units.len());
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
            unit.compile()?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("the compiling thread does not panic"))
    })?;
    write_list(&units, version, &archs).map_err(|e| format!("fatbins.rs: {e}"))
}

/// nvcc's arguments for a list of architectures.
fn targets(archs: &str) -> Result<Vec<String>> {
    let mut arguments = Vec::new();
    for arch in archs.split([';', ',', ' ']).filter(|arch| !arch.is_empty()) {
        let (number, code) = match arch.strip_prefix("compute_") {
            Some(number) => (number, "compute"),
            None => (arch, "sm"),
        };
        if number.trim_end_matches(['a', 'f']).parse::<u32>().map_or(true, |n| n < 80) {
            return Err(format!(
                "MOE_CUDA_ARCHS has {arch:?}; a list such as 80;90a (of 80 or newer), compute_80 for PTX, or all"
            ));
        }
        arguments.push(format!("-gencode=arch=compute_{number},code={code}_{number}"));
    }
    Ok(arguments)
}

fn sources() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir("kernels").map_err(|e| format!("kernels: {e}"))?;
    let mut sources: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();
    Ok(sources)
}

/// Removes what was made from sources that are gone.
fn remove_leftovers(folder: &Path, sources: &[PathBuf]) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let stem = name.split('.').next().unwrap();
        if !sources.iter().any(|source| source.file_stem().is_some_and(|s| s == stem)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// One source and what is made from it: `<stem>.fatbin`, and ptxas' report `<stem>.ptxas.txt`.
struct Unit {
    stem: String,
    command: Vec<String>,
    folder: PathBuf,
    version: Version,
}

impl Unit {
    fn new(source: &Path, nvcc: &Path, version: Version, targets: &[String], folder: &Path) -> Self {
        let stem = source.file_stem().unwrap().to_string_lossy().into_owned();
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let options = ["-fatbin", "-std=c++17", "-O3", "--compress-mode=size", "-Xptxas", "-v", "-MD", "-MF"];
        let mut command = vec![text(nvcc)];
        command.extend(options.map(String::from));
        command.push(text(&folder.join(format!("{stem}.d"))));
        command.extend_from_slice(targets);
        command.extend([text(source), "-o".into(), text(&folder.join(format!("{stem}.fatbin")))]);
        Unit { stem, command, folder: folder.into(), version }
    }

    fn file(&self, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", self.stem))
    }

    /// Compiles, unless the last result was made by the same command from the same sources.
    fn compile(&self) -> Result<()> {
        let current = self.stamp();
        if current.is_some() && fs::read_to_string(self.file("stamp")).ok() == current {
            return Ok(());
        }
        let _ = fs::remove_file(self.file("stamp"));
        let output = Command::new(&self.command[0]).args(&self.command[1..]).output();
        let output = output.map_err(|e| format!("{}: {e}", self.command[0]))?;
        let report = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            let report: Vec<&str> = report.lines().filter(|line| !line.starts_with("ptxas info")).collect();
            return Err(format!("kernels/{}.cu does not compile:\n{}", self.stem, report.join("\n")));
        }
        for line in report.lines().filter(|line| line.to_lowercase().contains("warning")) {
            println!("cargo:warning={line}");
        }
        let write = |extension, text: &str| {
            fs::write(self.file(extension), text).map_err(|e| format!("{}.{extension}: {e}", self.stem))
        };
        write("ptxas.txt", &report)?;
        write("stamp", &self.stamp().unwrap_or_default())
    }

    /// A digest of the command and of every file of ours that the last compilation read; none before the first.
    fn stamp(&self) -> Option<String> {
        let dependencies = fs::read_to_string(self.file("d")).ok()?;
        let mut digest = DefaultHasher::new();
        (&self.command, self.version).hash(&mut digest);
        for path in dependencies.split([' ', '\n']).filter(|path| {
            let toolkit = Path::new(path).is_absolute() && !Path::new(path).starts_with(env::current_dir().unwrap());
            !toolkit && [".cu", ".cuh", ".h"].iter().any(|extension| path.ends_with(extension))
        }) {
            fs::read(path).ok()?.hash(&mut digest);
        }
        self.file("fatbin").exists().then(|| format!("{:016x}", digest.finish()))
    }
}

/// Writes fatbins.rs, which src/cuda/fatbins.rs includes.
fn write_list(units: &[Unit], version: Version, archs: &str) -> std::io::Result<()> {
    let mut text = String::new();
    for Unit { stem, .. } in units {
        let _ = writeln!(text, "    ({stem:?}, &Aligned(*include_bytes!(\"kernels/{stem}.fatbin\"))),");
    }
    let toolkit = 1000 * version.0 + 10 * version.1;
    let hopper = archs.split([';', ',', ' ']).any(|arch| arch == "90a");
    let text = format!(
        "pub static FATBINS: &[Fatbin] = &[\n{text}];\n\
         pub const TOOLKIT: i32 = {toolkit};\n\
         pub const ARCHS: &str = {archs:?};\n\
         pub const HOPPER: bool = {hopper};\n"
    );
    fs::write(Path::new(&env::var("OUT_DIR").unwrap()).join("fatbins.rs"), text)
}

/// The first nvcc that is new enough; `NVCC` alone decides where it is set.
fn find_nvcc() -> Result<(PathBuf, Version)> {
    let mut too_old = String::new();
    let set = env::var_os("NVCC").filter(|value| !value.is_empty());
    let places = match &set {
        Some(nvcc) => vec![PathBuf::from(nvcc)],
        None => places(),
    };
    for nvcc in places {
        match nvcc_version(&nvcc) {
            Some(version) if version >= OLDEST_TOOLKIT => return Ok((nvcc, version)),
            Some((major, minor)) => {
                let _ = write!(too_old, " {} is of CUDA {major}.{minor}.", nvcc.display());
            }
            None if set.is_some() => return Err(format!("NVCC is {}, which does not run", nvcc.display())),
            None => {}
        }
    }
    let (major, minor) = OLDEST_TOOLKIT;
    Err(format!(
        "no nvcc of CUDA {major}.{minor} or newer was found in NVCC, CUDA_HOME, CUDA_PATH, PATH, the Python wheels or \
         /usr/local/cuda.{too_old}\n\
         Install a CUDA toolkit, or nvcc alone into .venv:\n    \
         python3 -m venv .venv && .venv/bin/pip install nvidia-cuda-nvcc==13.0.* nvidia-cuda-crt==13.0.* \
         nvidia-nvvm==13.0.* nvidia-cuda-runtime==13.0.* nvidia-cuda-cccl==13.0.*\n\
         Or build the CPU backend alone: cargo build --release --no-default-features"
    ))
}

fn places() -> Vec<PathBuf> {
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(|home| Path::new(&home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = toolkits.chain(env::split_paths(&path)).collect();
    for environment in [Some(".venv".into()), env::var_os("VIRTUAL_ENV")].into_iter().flatten() {
        let versions = fs::read_dir(Path::new(&environment).join("lib")).into_iter().flatten().flatten();
        folders.extend(versions.map(|version| version.path().join("site-packages/nvidia/cu13/bin")));
    }
    // Wheels of the active Python, wherever it keeps them.
    let python = Command::new("python3").args(["-c", "import nvidia; print('\\n'.join(nvidia.__path__))"]).output();
    let found = python.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    folders.extend(found.lines().map(|folder| Path::new(folder).join("cu13/bin")));
    folders.push("/usr/local/cuda/bin".into());
    folders.into_iter().map(|folder| folder.join("nvcc")).filter(|nvcc| nvcc.is_file()).collect()
}

fn nvcc_version(nvcc: &Path) -> Option<Version> {
    let output = Command::new(nvcc).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (major, rest) = text.split_once("release ")?.1.split_once('.')?;
    let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((major.parse().ok()?, minor.parse().ok()?))
}
