//! `include/moe.h` is what the sources say; `MOE_BLESS=1` rewrites it.

#[path = "support/header.rs"]
mod generator;

#[test]
fn header_matches_sources() {
    let path = generator::root().join("include/moe.h");
    let generated = generator::generate();
    if std::env::var("MOE_BLESS").is_ok_and(|v| v == "1") {
        std::fs::write(&path, &generated).expect("include/moe.h is writable");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    for (number, (new, old)) in generated.lines().zip(committed.lines()).enumerate() {
        assert_eq!(new, old, "include/moe.h differs from the sources at line {}; make header rewrites it", number + 1);
    }
    assert_eq!(generated.len(), committed.len(), "include/moe.h differs from the sources; make header rewrites it");
}
