//! The vocabulary, and what is made of the traits alone.

mod event_log;
mod ownership;
mod vocabulary;
