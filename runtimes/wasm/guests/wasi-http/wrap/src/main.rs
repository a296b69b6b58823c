//! Makes a component of a core module: `wrap WORLD.WIT WORLD CORE.WASM COMPONENT.WASM`.
//!
//! The module imports and exports by the names and types of the canonical ABI, as the guests in C do.

use std::{env, error::Error, fs, path::Path};

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [wit, world, core, component] = arguments.as_slice() else {
        return Err("usage: wrap WORLD.WIT WORLD CORE.WASM COMPONENT.WASM".into());
    };
    let mut resolve = Resolve::default();
    let package = resolve.push_file(Path::new(wit))?;
    let world = resolve.select_world(&[package], Some(world))?;
    let mut module = fs::read(core)?;
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
    let encoded = ComponentEncoder::default().module(&module)?.validate(true).encode()?;
    fs::write(component, encoded)?;
    Ok(())
}
