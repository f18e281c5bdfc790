//! What ptxas reports of every kernel: registers that spill to local memory cost more than any kernel can afford.
#![cfg(feature = "cuda")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// (stem, report) of every source, as build.rs kept them.
fn reports() -> Vec<(String, String)> {
    let folder = Path::new(env!("OUT_DIR")).join("kernels");
    let stem = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    let mut sources: Vec<PathBuf> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels"))
        .expect("kernels is readable")
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    sources.sort();
    let read = |stem: String| {
        let path = folder.join(format!("{stem}.ptxas.txt"));
        let report = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        (stem, report)
    };
    sources.iter().map(stem).map(read).collect()
}

/// Functions that use local memory: name, architecture, ptxas' own words.
fn local_memory(report: &str) -> Vec<String> {
    let mut found = Vec::new();
    let (mut arch, mut function) = ("", "");
    for line in report.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            arch = rest.split('\'').nth(2).unwrap_or("");
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            function = name;
        } else if line.contains("bytes stack frame") {
            let numbers = line.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
            if numbers.sum::<u64>() != 0 {
                found.push(format!("{function} for {arch}: {}", line.trim()));
            }
        }
    }
    found
}

#[test]
fn no_kernel_uses_local_memory() {
    let found: Vec<String> = reports()
        .iter()
        .flat_map(|(stem, report)| {
            local_memory(report).into_iter().map(move |what| format!("kernels/{stem}.cu: {what}"))
        })
        .collect();
    assert!(found.is_empty(), "{} kernels spill:\n{}", found.len(), found.join("\n"));
}

#[test]
fn spills_are_seen() {
    let report = "ptxas info    : Compiling entry function 'scale' for 'sm_80'\n\
        ptxas info    : Function properties for scale\n    \
        8 bytes stack frame, 0 bytes spill stores, 4 bytes spill loads\n\
        ptxas info    : Used 255 registers";
    assert_eq!(
        local_memory(report),
        ["scale for sm_80: 8 bytes stack frame, 0 bytes spill stores, 4 bytes spill loads"]
    );
    assert!(local_memory(&report.replace(['8', '4'], "0")).is_empty());
}

#[test]
fn every_source_has_kernels_with_names_of_their_own() {
    let mut names = BTreeSet::new();
    for (stem, report) in reports() {
        let entries: BTreeSet<String> = report
            .lines()
            .filter_map(|line| line.split_once("Compiling entry function '")?.1.split('\'').next().map(str::to_owned))
            .collect();
        assert!(!entries.is_empty(), "kernels/{stem}.cu has no kernel");
        for name in entries {
            assert!(names.insert(name.clone()), "kernel {name} of kernels/{stem}.cu is in another source too");
        }
    }
}
