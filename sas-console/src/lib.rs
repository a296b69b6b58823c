#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod action;
mod api;
mod assets;
mod chart;
mod console;
mod form;
mod frame;
mod live;
mod page;
mod pages;
mod session;
mod text;
mod words;

pub use console::{Console, PREFIX};
