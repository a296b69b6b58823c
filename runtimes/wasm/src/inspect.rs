//! What bytes are, and whether the compiler should see them at all.

use sas_core::{Error, Result};
use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind, ComponentTypeRef,
    Parser, Payload,
};

use crate::{
    config::{CompileLimits, WasmConfig},
    kind::{Kind, invalid},
    preview1,
};

/// Whether it begins as the binary form does.
pub(crate) fn is_binary(code: &[u8]) -> bool {
    code.starts_with(b"\0asm")
}

/// Refuses by its size and its first bytes what is neither form.
pub(crate) fn check_form(name: &str, code: &[u8], limits: &CompileLimits) -> Result<()> {
    let over = |most: usize, field: &str| {
        let size = code.len();
        invalid(format!(
            "source: {name} has {size} bytes: at most {most} are accepted (WasmConfig.compile.{field})"
        ))
    };
    if code.len() > limits.code_bytes {
        return Err(over(limits.code_bytes, "code_bytes"));
    }
    if is_binary(code) {
        return Ok(());
    }
    let start = code.iter().copied().find(|byte| !byte.is_ascii_whitespace());
    if !matches!(start, Some(b'(' | b';')) {
        return Err(invalid(format!(
            "source: {name} is {}, and neither WebAssembly nor its text form: build the function for wasm32-wasip1 or as \
             a wasi:http component",
            looks_like(code)
        )));
    }
    if code.len() > limits.text_bytes {
        let refused = over(limits.text_bytes, "text_bytes");
        return Err(invalid(format!("{}: deploy the binary form (wat2wasm)", refused.message)));
    }
    Ok(())
}

/// The binary form of a text. It takes many times the text's bytes of memory.
pub(crate) fn assemble(name: &str, code: &[u8]) -> Result<Vec<u8>> {
    let text = std::str::from_utf8(code)
        .map_err(|error| invalid(format!("source: {name} looks like text but is not UTF-8: {error}")))?;
    wat::parse_str(text).map_err(|error| {
        // The parser's own words hold the line that is wrong. It may be anybody's file that was named here.
        let words = error.to_string();
        let place =
            words.split_once("--> <anon>:").and_then(|(_, rest)| rest.lines().next()).unwrap_or_default();
        invalid(format!("source: {name}: it is no text form of WebAssembly, at line:column {place}"))
    })
}

/// What a file is that is no code for us. Nothing of its content is told: it may be anybody's file.
fn looks_like(code: &[u8]) -> &'static str {
    const KNOWN: [(&[u8], &str); 5] = [
        (b"\x7fELF", "a program of a machine (ELF)"),
        (b"#!", "a script"),
        (b"PK", "a zip archive"),
        (b"\x1f\x8b", "a gzip archive"),
        (b"\xca\xfe\xba\xbe", "a Java class"),
    ];
    if code.is_empty() {
        return "empty";
    }
    KNOWN.iter().find(|(magic, _)| code.starts_with(magic)).map_or("something else", |(_, what)| what)
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
    let mut frames = vec![Frame::default()];
    let mut nested = 0_u32;
    let mut all_weight = 0_u64;
    let mut exports = Vec::new();
    let mut foreign = Vec::new();
    for payload in Parser::new(0).parse_all(binary) {
        let payload = payload.map_err(broken)?;
        let counted = match &payload {
            Payload::Version { encoding, .. } if frames.len() == 1 => {
                component = *encoding == wasmparser::Encoding::Component;
                None
            }
            Payload::TypeSection(section) => Some(("types", section.count())),
            Payload::ImportSection(section) => {
                if frames.len() == 1 && section.count() <= limits.entities {
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
                for import in section.clone() {
                    if matches!(import.map_err(broken)?.ty, ComponentTypeRef::Component(_)) {
                        return Err(opaque());
                    }
                }
                if frames.len() == 1 && section.count() <= limits.entities {
                    for import in section.clone() {
                        let import = import.map_err(broken)?;
                        let is_type = matches!(import.ty, ComponentTypeRef::Type(_));
                        if !is_type && !is_provided(import.name.name) {
                            foreign.push(import.name.name.to_owned());
                        }
                    }
                }
                Some(("component imports", section.count()))
            }
            Payload::ComponentInstanceSection(section) => {
                for instance in section.clone() {
                    if let ComponentInstance::Instantiate { component_index, .. } =
                        instance.map_err(broken)?
                    {
                        instantiate(&mut frames, component_index, limits.nested)?;
                    }
                }
                Some(("component instances", section.count()))
            }
            Payload::ComponentAliasSection(section) => {
                for alias in section.clone() {
                    match alias.map_err(broken)? {
                        ComponentAlias::InstanceExport { kind: ComponentExternalKind::Component, .. } => {
                            return Err(opaque());
                        }
                        ComponentAlias::Outer { kind: ComponentOuterAliasKind::Component, count, index } => {
                            let size = size_of(&frames, count, index);
                            define(&mut frames, size);
                        }
                        _ => {}
                    }
                }
                Some(("aliases", section.count()))
            }
            Payload::ComponentCanonicalSection(section) => Some(("canonical functions", section.count())),
            Payload::InstanceSection(section) => {
                if let Some(frame) = frames.last_mut() {
                    frame.instances = frame.instances.saturating_add(section.count().into());
                }
                Some(("instances", section.count()))
            }
            Payload::ComponentExportSection(section) => {
                if frames.len() == 1 {
                    for export in section.clone() {
                        exports.push(export.map_err(broken)?.name.name.to_owned());
                    }
                }
                // What is exported gets another number, too.
                for export in section.clone() {
                    let export = export.map_err(broken)?;
                    if export.kind == ComponentExternalKind::Component {
                        let size = size_of(&frames, 0, export.index);
                        define(&mut frames, size);
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
                let locals = locals(body).map_err(broken)?;
                let weight = u64::from(locals).saturating_mul(size as u64);
                if weight > limits.function_weight {
                    return Err(invalid(format!(
                        "source: a function at byte {} has {locals} locals and {size} bytes: the product may be at most \
                         {}, since the compiler's time and memory grow with it (WasmConfig.compile.function_weight)",
                        body.range().start,
                        limits.function_weight
                    )));
                }
                all_weight = all_weight.saturating_add(weight);
                if all_weight > limits.module_weight {
                    return Err(invalid(format!(
                        "source: the locals of its functions times their bytes come to more than {} by byte {}: the \
                         compiler's time and memory grow with it (WasmConfig.compile.module_weight)",
                        limits.module_weight,
                        body.range().end
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
                let is_component = matches!(payload, Payload::ComponentSection { .. });
                frames.push(Frame { is_component, ..Frame::default() });
                nested += 1;
                Some((
                    "nested modules and components",
                    nested.saturating_mul(limits.entities / limits.nested.max(1)),
                ))
            }
            Payload::End(_) => {
                if frames.len() > 1
                    && let Some(frame) = frames.pop()
                    && frame.is_component
                {
                    define(&mut frames, frame.instances);
                }
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
    kind_of_component(&exports, config.wasi_03)
}

/// A module or component that is being read.
#[derive(Default)]
struct Frame {
    is_component: bool,
    /// Instances that one instance of it makes, at any depth.
    instances: u64,
    /// The same of the components that it can name.
    components: Vec<u64>,
}

/// The instances that one of a component makes. Unknown numbers are the compiler's to refuse.
fn size_of(frames: &[Frame], outer: u32, index: u32) -> u64 {
    let frame = frames.len().checked_sub(1 + outer as usize).and_then(|at| frames.get(at));
    frame.and_then(|frame| frame.components.get(index as usize)).copied().unwrap_or(0)
}

fn define(frames: &mut [Frame], size: u64) {
    if let Some(frame) = frames.last_mut() {
        frame.components.push(size);
    }
}

/// Components that instantiate components that do so again double with each level: the compiler unrolls all of it.
fn instantiate(frames: &mut [Frame], index: u32, most: u32) -> Result<()> {
    let size = size_of(frames, 0, index);
    let Some(frame) = frames.last_mut() else { return Ok(()) };
    frame.instances = frame.instances.saturating_add(1).saturating_add(size);
    // A component makes a few instances of each module and component in it.
    let most = u64::from(most).saturating_mul(16);
    if frame.instances > most {
        return Err(invalid(format!(
            "source: its components make {} instances of each other: at most {most} are accepted \
             (16 for each of WasmConfig.compile.nested)",
            frame.instances
        )));
    }
    Ok(())
}

/// What hides how many instances there will be. Composition tools put components inside instead.
fn opaque() -> Error {
    invalid(
        "source: the code takes components as imports or out of instances: compose it so that they lie inside",
    )
}

/// How many locals a function has, its parameters left out.
fn locals(body: &wasmparser::FunctionBody<'_>) -> wasmparser::Result<u32> {
    let mut count = 0u32;
    for group in body.get_locals_reader()? {
        count = count.saturating_add(group?.0);
    }
    Ok(count)
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

fn kind_of_component(exports: &[String], wasi_03: bool) -> Result<Kind> {
    let has = |prefix: &str| exports.iter().any(|name| name.starts_with(prefix));
    if has("wasi:http/incoming-handler@0.2.") {
        return Ok(Kind::Http02);
    }
    match has("wasi:http/handler@0.3.") {
        true if wasi_03 => return Ok(Kind::Http03),
        true => {
            return Err(invalid(
                "source: the component is of WASI 0.3, which this platform does not take (WasmConfig.wasi_03): build \
                 it for wasi:http/incoming-handler of WASI 0.2",
            ));
        }
        false => {}
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
