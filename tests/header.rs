//! `include/moe.h` and `kernels/params/*.h` are what the sources say; `MOE_BLESS=1` rewrites them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[path = "support/header.rs"]
mod header;
#[path = "support/params.rs"]
mod params;

fn bless() -> bool {
    std::env::var("MOE_BLESS").is_ok_and(|v| v == "1")
}

/// The committed file is what was generated.
fn compare(path: &Path, generated: &str) {
    if bless() {
        fs::create_dir_all(path.parent().unwrap()).expect("the folder can be made");
        fs::write(path, generated).expect("the header is writable");
    }
    let committed = fs::read_to_string(path).unwrap_or_default();
    let advice = format!("{} differs from the sources; make header rewrites it", path.display());
    for (number, (new, old)) in generated.lines().zip(committed.lines()).enumerate() {
        assert_eq!(new, old, "line {}: {advice}", number + 1);
    }
    assert_eq!(generated.len(), committed.len(), "{advice}");
}

#[test]
fn header_matches_sources() {
    compare(&header::root().join("include/moe.h"), &header::generate());
}

#[test]
fn kernel_parameters_match_sources() {
    let folder = header::root().join("kernels/params");
    let generated = params::generate();
    for (name, text) in &generated {
        compare(&folder.join(name), text);
    }
    let committed: BTreeSet<String> = fs::read_dir(&folder)
        .expect("kernels/params is readable")
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for name in committed.difference(&generated.keys().cloned().collect()) {
        match bless() {
            true => fs::remove_file(folder.join(name)).expect("the header can be removed"),
            false => panic!("kernels/params/{name} has no source any more; make header removes it"),
        }
    }
}
