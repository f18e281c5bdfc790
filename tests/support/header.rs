//! Generates the header: each section by cbindgen, then an INIT macro for every struct that begins with struct_size.
//! `kernels/params` is generated likewise (support/params.rs).

use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Header sections in order, and the sources of each.
const SECTIONS: &[(&str, &[&str])] = &[
    ("status", &["abi/status.rs"]),
    ("types", &["abi/types.rs"]),
    ("context", &["abi/context.rs", "context.rs", "capi/context.rs"]),
    (
        "router",
        &[
            "abi/router/logits.rs",
            "abi/router/topk.rs",
            "abi/router/loss.rs",
            "abi/router/sinkhorn.rs",
            "abi/router/expert_choice.rs",
            "abi/router/bias_update.rs",
            "abi/router/capacity.rs",
            "capi/router/logits.rs",
            "capi/router/topk.rs",
            "capi/router/loss.rs",
            "capi/router/sinkhorn.rs",
            "capi/router/expert_choice.rs",
            "capi/router/bias_update.rs",
            "capi/router/capacity.rs",
        ],
    ),
    ("dispatch", &["abi/dispatch.rs", "capi/dispatch.rs"]),
    ("grouped_gemm", &["abi/grouped_gemm.rs", "capi/grouped_gemm.rs"]),
    ("activation", &["abi/activation.rs", "capi/activation.rs"]),
    ("expert_mlp", &["abi/expert_mlp.rs", "capi/expert_mlp.rs"]),
    ("quantize", &["abi/quantize.rs", "capi/quantize.rs"]),
    ("parallel", &["abi/parallel.rs", "ops/parallel.rs", "capi/parallel.rs"]),
];

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

pub fn generate() -> String {
    let version = |part| match part {
        "MAJOR" => env!("CARGO_PKG_VERSION_MAJOR"),
        "MINOR" => env!("CARGO_PKG_VERSION_MINOR"),
        _ => env!("CARGO_PKG_VERSION_PATCH"),
    };
    let mut text = String::from(PROLOGUE);
    for part in ["MAJOR", "MINOR", "PATCH"] {
        writeln!(text, "#define MOE_VERSION_{part} {}", version(part)).unwrap();
    }
    text.push_str(STREAM);
    for (name, sources) in SECTIONS {
        writeln!(text, "\n/* ---------------------------------------------------------------- {name} */\n").unwrap();
        let section = section(sources);
        text.push_str(&section);
        text.push_str(&init_macros(&section));
    }
    text.push_str(EPILOGUE);
    text
}

const PROLOGUE: &str = "\
/* libmoe: Mixture-of-Experts layers on CUDA GPUs and on the CPU.
 *
 * Generated from the Rust sources: do not edit. The conventions of all functions (ownership, streams, workspaces,
 * errors, threads, determinism) stand in docs/conventions.md. */
#ifndef MOE_H
#define MOE_H

#include <stddef.h>
#include <stdint.h>

";

const STREAM: &str = "
#ifdef __cplusplus
extern \"C\" {
#endif

/** A CUDA stream: cudaStream_t and CUstream alike. NULL is the legacy default stream; on the CPU it must be NULL. */
typedef struct CUstream_st *moe_stream_t;

/** A CUDA event: cudaEvent_t and CUevent alike. */
typedef struct CUevent_st *moe_event_t;
";

const EPILOGUE: &str = "
#ifdef __cplusplus
}
#endif

#endif /* MOE_H */
";

fn section(sources: &[&str]) -> String {
    let mut config = cbindgen::Config::from_file(root().join("cbindgen.toml")).expect("cbindgen.toml is valid");
    // cbindgen leaves out what no function of the same section uses.
    config.export.include = sources.iter().filter(|s| s.starts_with("abi/")).flat_map(|s| declared(s)).collect();
    let builder = sources.iter().fold(cbindgen::Builder::new().with_config(config), |builder, source| {
        builder.with_src(root().join("src").join(source))
    });
    let mut bytes = Vec::new();
    builder.generate().expect("the sources parse").write(&mut bytes);
    let text = String::from_utf8(bytes).expect("cbindgen writes UTF-8");
    format!("{}\n", one_line_comments(text.trim()))
}

/// The types that a source declares.
fn declared(source: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join("src").join(source)).expect("the source is readable");
    let names = text.lines().filter_map(|l| l.strip_prefix("pub struct ").or_else(|| l.strip_prefix("pub type ")));
    names.map(|rest| rest.split([' ', '{']).next().unwrap().to_owned()).collect()
}

/// A comment of one line takes one line.
fn one_line_comments(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut kept: Vec<String> = Vec::new();
    let mut next = 0;
    while next < lines.len() {
        let line = lines[next];
        let indent = &line[..line.len() - line.trim_start().len()];
        let body = lines.get(next + 1).and_then(|l| l.trim_start().strip_prefix("* "));
        match (line.trim(), body, lines.get(next + 2).map(|l| l.trim())) {
            ("/**", Some(body), Some("*/")) => {
                kept.push(format!("{indent}/** {body} */"));
                next += 3;
            }
            _ => {
                kept.push(line.to_owned());
                next += 1;
            }
        }
    }
    kept.join("\n")
}

/// `#define MOE_X_INIT { sizeof(moe_x_t), 0, ... }`: every field is listed, so that no compiler warns.
fn init_macros(section: &str) -> String {
    let mut macros = String::new();
    for block in section.split("typedef struct ").skip(1) {
        let Some((name, rest)) = block.split_once(" {\n") else { continue };
        let Some((body, _)) = rest.split_once(&format!("\n}} {name};")) else { continue };
        let body = strip_comments(body);
        let fields: Vec<String> =
            body.split(';').map(str::trim).filter(|f| !f.is_empty()).map(|f| zero(name, f)).collect();
        let stem = name.trim_end_matches("_t").to_uppercase();
        write!(macros, "\n#define {stem}_INIT \\\n  {{ {} }}\n", fields.join(", ")).unwrap();
    }
    macros
}

/// The initial value of a field's declaration.
fn zero(owner: &str, field: &str) -> String {
    let kind = field.split(' ').next().unwrap();
    match field {
        "uint32_t struct_size" => format!("sizeof({owner})"),
        _ if field.contains('[') => "{ 0 }".into(),
        _ if field.contains('*') => "NULL".into(),
        _ if ["moe_tensor_t", "moe_count_t", "moe_output_mode_t", "moe_random_t"].contains(&kind) => {
            format!("{}_INIT", kind.trim_end_matches("_t").to_uppercase())
        }
        _ => "0".into(),
    }
}

fn strip_comments(text: &str) -> String {
    let mut rest = text;
    let mut kept = String::new();
    while let Some(start) = rest.find("/*") {
        kept.push_str(&rest[..start]);
        rest = &rest[start..][rest[start..].find("*/").unwrap() + 2..];
    }
    kept + rest
}
