#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sas_router::fuzzing::path(bytes));
