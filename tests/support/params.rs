//! Generates `kernels/params`: what kernels take by value is declared once, in Rust.
//!
//! `<stem>.h` has the public `#[repr(C)]` structs and constants of `src/cuda/**/<stem>.rs` (of a `mod.rs`: its
//! folder's name); `types.h` the validated types of the ground, which all others include.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The sources of types.h.
const GROUND: &[&str] = &["src/tensor.rs", "src/check.rs", "src/groups.rs", "src/cuda/grouped_gemm/tensor_map.rs"];

/// Each file of kernels/params and its text.
pub fn generate() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ground: Vec<PathBuf> = GROUND.iter().map(|source| root.join(source)).collect();
    let mut headers = BTreeMap::from([("types.h".to_owned(), header("types", &ground))]);
    let mut folders = vec![root.join("src/cuda")];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).expect("src/cuda is readable").map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if !ground.contains(&path) && !structs(&path).is_empty() {
                let named = if path.ends_with("mod.rs") { path.parent().unwrap() } else { &path };
                let stem = named.file_stem().unwrap().to_str().unwrap();
                let text = header(stem, std::slice::from_ref(&path));
                let clash = headers.insert(format!("{stem}.h"), text);
                assert!(clash.is_none(), "two sources would write kernels/params/{stem}.h");
            }
        }
    }
    headers
}

fn header(stem: &str, sources: &[PathBuf]) -> String {
    let ground = stem == "types";
    let mut config = cbindgen::Config {
        language: cbindgen::Language::Cxx,
        include_guard: Some(format!("MOE_PARAMS_{}_H", stem.to_uppercase())),
        header: Some("// Generated from the Rust sources: do not edit.".into()),
        no_includes: true,
        documentation_style: cbindgen::DocumentationStyle::Cxx,
        line_length: 110,
        tab_width: 2,
        layout: cbindgen::LayoutConfig { aligned_n: Some("alignas".into()), ..Default::default() },
        ..Default::default()
    };
    config.includes = vec![if ground { "../../include/moe.h" } else { "types.h" }.into()];
    if ground {
        config.after_includes = Some("\n// MOE_DTYPE_*.\nusing Dtype = int32_t;".into());
    }
    config.export.include = sources.iter().flat_map(|source| structs(source)).collect();
    // The limits of the checks are the host's alone; what a folder's other files declare stands in their own headers.
    config.export.exclude = match ground {
        true => vec!["MAX_ROWS".into(), "MAX_WIDTH".into(), "MAX_EXPERTS".into()],
        false => siblings(&sources[0]).iter().flat_map(|sibling| constants(sibling)).collect(),
    };
    let builder = cbindgen::Builder::new().with_config(config);
    let builder = sources.iter().fold(builder, |builder, source| builder.with_src(source));
    let mut bytes = Vec::new();
    builder.generate().unwrap_or_else(|e| panic!("{stem}.rs: {e}")).write(&mut bytes);
    String::from_utf8(bytes).expect("cbindgen writes UTF-8")
}

/// The public `#[repr(C)]` structs that a source declares.
fn structs(source: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(source).expect("the source is readable");
    let blocks = text.split("\n#[repr(C").skip(1);
    let declarations = blocks.filter_map(|block| block.lines().find(|line| line.contains("struct ")));
    let public = declarations.filter(|line| line.starts_with("pub"));
    public.map(|line| line.split_once("struct ").unwrap().1.split(|c| !is_name(c)).next().unwrap().to_owned()).collect()
}

/// The files beside a folder's mod.rs, which cbindgen reads with it.
fn siblings(source: &Path) -> Vec<PathBuf> {
    if !source.ends_with("mod.rs") {
        return Vec::new();
    }
    let files =
        std::fs::read_dir(source.parent().unwrap()).expect("the folder is readable").map(|entry| entry.unwrap().path());
    files.filter(|path| path.is_file() && path != source).collect()
}

/// The public constants that a source declares.
fn constants(source: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(source).expect("the source is readable");
    let declared = text.lines().filter_map(|line| line.strip_prefix("pub const "));
    declared.filter_map(|rest| rest.split_once(':')).map(|(name, _)| name.to_owned()).collect()
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}
