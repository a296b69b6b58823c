//! What bytes are, and whether the compiler should see them at all.

use sas_core::{Error, ErrorKind, Result};
use wasmparser::{Parser, Payload};

use crate::{
    config::{CompileLimits, WasmConfig},
    preview1,
};

/// What a function is made as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A core module of WASI preview 1 that speaks CGI.
    Cgi,
    /// A component that exports `wasi:http/incoming-handler` of WASI 0.2.
    Http02,
}

impl Kind {
    /// The name as notes and metrics show it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cgi => "cgi",
            Self::Http02 => "wasi-http-0.2",
        }
    }
}

pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidSpec, "prepare", message)
}

/// The binary form: text is assembled, everything else passes as it is.
pub(crate) fn to_binary(name: &str, code: &[u8], limits: &CompileLimits) -> Result<Option<Vec<u8>>> {
    if code.len() > limits.code_bytes {
        return Err(invalid(format!(
            "source: {name} has {} bytes: at most {} are accepted (WasmConfig.compile.code_bytes)",
            code.len(),
            limits.code_bytes
        )));
    }
    if code.starts_with(b"\0asm") {
        return Ok(None);
    }
    let start = code.iter().copied().find(|byte| !byte.is_ascii_whitespace());
    if !matches!(start, Some(b'(' | b';')) {
        let begins: Vec<String> = code.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        return Err(invalid(format!(
            "source: {name} begins with [{}], which is neither WebAssembly (00 61 73 6d) nor its text form: \
             build the function for wasm32-wasip1 or as a wasi:http component",
            begins.join(" ")
        )));
    }
    let text = std::str::from_utf8(code)
        .map_err(|error| invalid(format!("source: {name} looks like text but is not UTF-8: {error}")))?;
    let binary = wat::parse_str(text).map_err(|error| invalid(format!("source: {name}: {error}")))?;
    Ok(Some(binary))
}

/// Finds out what a binary is, and refuses what would cost the compiler out of proportion.
pub(crate) fn inspect(binary: &[u8], config: &WasmConfig) -> Result<Kind> {
    let limits = &config.compile;
    let broken = |error: wasmparser::BinaryReaderError| {
        invalid(format!(
            "source: the code is damaged or cut short at byte {}: {}",
            error.offset(),
            error.message()
        ))
    };
    let mut component = false;
    let mut depth = 0_u32;
    let mut nested = 0_u32;
    let mut exports = Vec::new();
    let mut foreign = Vec::new();
    for payload in Parser::new(0).parse_all(binary) {
        let payload = payload.map_err(broken)?;
        let counted = match &payload {
            Payload::Version { encoding, .. } if depth == 0 => {
                component = *encoding == wasmparser::Encoding::Component;
                None
            }
            Payload::TypeSection(section) => Some(("types", section.count())),
            Payload::ImportSection(section) => {
                if depth == 0 && section.count() <= limits.entities {
                    for import in section.clone().into_imports() {
                        let import = import.map_err(broken)?;
                        if !preview1::provides(import.module, import.name) {
                            foreign.push(format!("{}.{}", import.module, import.name));
                        }
                    }
                }
                Some(("imports", section.count()))
            }
            Payload::FunctionSection(section) => Some(("functions", section.count())),
            Payload::TableSection(section) => Some(("tables", section.count())),
            Payload::GlobalSection(section) => Some(("globals", section.count())),
            Payload::ExportSection(section) => Some(("exports", section.count())),
            Payload::ElementSection(section) => Some(("element segments", section.count())),
            Payload::DataSection(section) => Some(("data segments", section.count())),
            Payload::ComponentTypeSection(section) => Some(("component types", section.count())),
            Payload::ComponentImportSection(section) => {
                if depth == 0 && section.count() <= limits.entities {
                    for import in section.clone() {
                        let import = import.map_err(broken)?;
                        let is_type = matches!(import.ty, wasmparser::ComponentTypeRef::Type(_));
                        if !is_type && !is_provided(import.name.name) {
                            foreign.push(import.name.name.to_owned());
                        }
                    }
                }
                Some(("component imports", section.count()))
            }
            Payload::ComponentInstanceSection(section) => Some(("component instances", section.count())),
            Payload::ComponentAliasSection(section) => Some(("aliases", section.count())),
            Payload::ComponentCanonicalSection(section) => Some(("canonical functions", section.count())),
            Payload::InstanceSection(section) => Some(("instances", section.count())),
            Payload::ComponentExportSection(section) => {
                if depth == 0 {
                    for export in section.clone() {
                        exports.push(export.map_err(broken)?.name.name.to_owned());
                    }
                }
                Some(("component exports", section.count()))
            }
            Payload::CodeSectionEntry(body) => {
                let size = body.range().len();
                if size as u64 > u64::from(limits.function_bytes) {
                    return Err(invalid(format!(
                        "source: a function at byte {} has {size} bytes: at most {} are accepted \
                         (WasmConfig.compile.function_bytes)",
                        body.range().start,
                        limits.function_bytes
                    )));
                }
                if let Some(depth) = too_deep(body, limits.block_depth).map_err(broken)? {
                    return Err(invalid(format!(
                        "source: a function at byte {} has blocks {depth} deep: at most {} are accepted \
                         (WasmConfig.compile.block_depth)",
                        body.range().start,
                        limits.block_depth
                    )));
                }
                None
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {
                depth += 1;
                nested += 1;
                Some((
                    "nested modules and components",
                    nested.saturating_mul(limits.entities / limits.nested.max(1)),
                ))
            }
            Payload::End(_) => {
                depth = depth.saturating_sub(1);
                None
            }
            _ => None,
        };
        if let Some((what, count)) = counted
            && count > limits.entities
        {
            let (count, most) = match what {
                "nested modules and components" => (nested, limits.nested),
                _ => (count, limits.entities),
            };
            return Err(invalid(format!(
                "source: {count} {what}: at most {most} are accepted (WasmConfig.compile)"
            )));
        }
    }
    if !foreign.is_empty() {
        return Err(invalid(not_granted(&foreign)));
    }
    if !component {
        return Ok(Kind::Cgi);
    }
    kind_of_component(&exports)
}

/// The depth at which a function's blocks pass `most`, if they do.
fn too_deep(body: &wasmparser::FunctionBody<'_>, most: u32) -> wasmparser::Result<Option<u32>> {
    use wasmparser::Operator;
    let mut depth = 0;
    for operator in body.get_operators_reader()? {
        match operator? {
            Operator::Block { .. }
            | Operator::Loop { .. }
            | Operator::If { .. }
            | Operator::TryTable { .. } => {
                depth += 1;
                if depth > most {
                    return Ok(Some(depth));
                }
            }
            Operator::End => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(None)
}

/// Whether the platform has an interface of this name. What it has of it is seen when the code is linked.
fn is_provided(name: &str) -> bool {
    const PACKAGES: [&str; 7] = [
        "wasi:cli/",
        "wasi:clocks/",
        "wasi:filesystem/",
        "wasi:http/",
        "wasi:io/",
        "wasi:random/",
        "wasi:sockets/",
    ];
    let versions = ["@0.2.", "@0.3."];
    PACKAGES.iter().any(|package| name.starts_with(package))
        && versions.iter().any(|version| name.contains(version))
}

/// Imports that nothing provides, the first of them by name.
fn not_granted(names: &[String]) -> String {
    const SHOWN: usize = 20;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    let more = match names.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "source: the code imports what a function is not granted: {shown}{more}; there are wasi_snapshot_preview1 \
         for modules, and for components the interfaces of WASI with wasi:http"
    )
}

fn kind_of_component(exports: &[String]) -> Result<Kind> {
    let has = |prefix: &str| exports.iter().any(|name| name.starts_with(prefix));
    if has("wasi:http/incoming-handler@0.2.") {
        return Ok(Kind::Http02);
    }
    if has("wasi:http/handler@0.3.") {
        return Err(invalid(
            "source: the component is of WASI 0.3, which this runtime does not take yet: build it for \
             wasi:http/incoming-handler of WASI 0.2",
        ));
    }
    let found = match exports {
        [] => "nothing".to_owned(),
        names => names.iter().take(20).cloned().collect::<Vec<_>>().join(", "),
    };
    Err(invalid(format!(
        "source: the component exports {found}, but a function exports wasi:http/incoming-handler@0.2: \
         build it for the world wasi:http/proxy"
    )))
}
