//! WASI preview 1 for a guest that has nothing but its request: arguments, environment, clocks, randomness and the
//! three standard streams. Without preopened folders there is nothing else to have, so that every other file
//! descriptor is a bad one. It is several times cheaper per request than the general implementation, which guests
//! with folders get (see `files`), because nothing is made before the guest asks for it.

use std::{sync::Arc, time::Duration};

use bytes::Buf;
use sas_core::Clock;
use tokio::time::Instant;
use wasmtime::{
    Caller, Engine, Extern, ExternType, InstancePre, Linker, Memory, Module, ModuleExport, Result, Store,
    TypedFunc,
};

use crate::{
    cgi::{Block, Output, environment},
    ends::Exit,
    kind::invalid,
    limits::Limiter,
    logs::Lines,
    sandbox::{self, Limited},
    stdin::Stdin,
    sync::Shared,
};

const OK: i32 = 0;
const BADF: i32 = 8;
const FAULT: i32 = 21;
const INVAL: i32 = 28;
const IO: i32 = 29;
const NOTSOCK: i32 = 57;
const NOTSUP: i32 = 58;
const SPIPE: i32 = 70;

/// The module of preview 1, and all that it has.
const MODULE: &str = "wasi_snapshot_preview1";
const FUNCTIONS: [&str; 46] = [
    "args_get",
    "args_sizes_get",
    "clock_res_get",
    "clock_time_get",
    "environ_get",
    "environ_sizes_get",
    "fd_advise",
    "fd_allocate",
    "fd_close",
    "fd_datasync",
    "fd_fdstat_get",
    "fd_fdstat_set_flags",
    "fd_fdstat_set_rights",
    "fd_filestat_get",
    "fd_filestat_set_size",
    "fd_filestat_set_times",
    "fd_pread",
    "fd_prestat_dir_name",
    "fd_prestat_get",
    "fd_pwrite",
    "fd_read",
    "fd_readdir",
    "fd_renumber",
    "fd_seek",
    "fd_sync",
    "fd_tell",
    "fd_write",
    "path_create_directory",
    "path_filestat_get",
    "path_filestat_set_times",
    "path_link",
    "path_open",
    "path_readlink",
    "path_remove_directory",
    "path_rename",
    "path_symlink",
    "path_unlink_file",
    "poll_oneoff",
    "proc_exit",
    "proc_raise",
    "random_get",
    "sched_yield",
    "sock_accept",
    "sock_recv",
    "sock_send",
    "sock_shutdown",
];

/// Most bytes that one call moves, so that a guest can't make the host copy for long at a time.
const MOST_AT_ONCE: usize = 1 << 20;
/// Most vectors or subscriptions that one call may name.
const MOST_VECTORS: u32 = 1_024;

/// What the host keeps for one CGI guest.
pub(crate) struct CgiGuest {
    pub(crate) limiter: Limiter,
    pub(crate) request: http::request::Parts,
    pub(crate) stdin: Stdin,
    pub(crate) declared: Option<Arc<[(String, String)]>>,
    pub(crate) arguments: Arc<Block>,
    pub(crate) output: Shared<Output>,
    pub(crate) stderr: Lines,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) started: Instant,
    pub(crate) memory: Option<Memory>,
    pub(crate) environment: Option<Block>,
}

impl CgiGuest {
    fn environment(&mut self) -> &Block {
        let Self { environment: kept, declared, request, stdin, .. } = self;
        kept.get_or_insert_with(|| {
            environment(declared.as_deref().unwrap_or_default(), request, stdin.length)
        })
    }
}

type Guest<'a> = Caller<'a, CgiGuest>;

fn memory(guest: &mut Guest<'_>) -> Result<Memory> {
    if let Some(memory) = guest.data().memory {
        return Ok(memory);
    }
    let memory = guest
        .get_export("memory")
        .and_then(Extern::into_memory)
        .ok_or_else(|| wasmtime::Error::msg("the module exports no memory"))?;
    guest.data_mut().memory = Some(memory);
    Ok(memory)
}

fn range(pointer: i32, length: usize) -> std::ops::Range<usize> {
    let start = pointer.cast_unsigned() as usize;
    start..start.saturating_add(length)
}

fn put(memory: &mut [u8], pointer: i32, bytes: &[u8]) -> bool {
    memory.get_mut(range(pointer, bytes.len())).map(|place| place.copy_from_slice(bytes)).is_some()
}

fn get_u32(memory: &[u8], pointer: i32) -> Option<u32> {
    let bytes = memory.get(range(pointer, 4))?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// The ranges that an array of vectors names; `None` when it lies outside of the memory.
fn vectors(memory: &[u8], pointer: i32, count: i32) -> Option<Vec<std::ops::Range<usize>>> {
    let count = count.cast_unsigned();
    (0..count.min(MOST_VECTORS))
        .map(|at| {
            let entry = pointer.wrapping_add((at * 8).cast_signed());
            let start = get_u32(memory, entry)? as usize;
            let length = get_u32(memory, entry.wrapping_add(4))? as usize;
            let end = start.checked_add(length).filter(|end| *end <= memory.len())?;
            Some(start..end)
        })
        .collect()
}

fn sizes(guest: &mut Guest<'_>, count_at: i32, bytes_at: i32, count: u32, bytes: usize) -> Result<i32> {
    let memory = memory(guest)?.data_mut(guest);
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    let done = put(memory, count_at, &count.to_le_bytes()) && put(memory, bytes_at, &bytes.to_le_bytes());
    Ok(if done { OK } else { FAULT })
}

fn hand_out(memory: &mut [u8], pointers: i32, strings: i32, block: &Block) -> i32 {
    if !put(memory, strings, &block.bytes) {
        return FAULT;
    }
    let mut string = strings.cast_unsigned();
    for (at, text) in (0_u32..).zip(block.bytes.split_inclusive(|byte| *byte == 0)) {
        if !put(memory, pointers.wrapping_add((at * 4).cast_signed()), &string.to_le_bytes()) {
            return FAULT;
        }
        string = string.wrapping_add(u32::try_from(text.len()).unwrap_or(u32::MAX));
    }
    OK
}

async fn fd_write(mut guest: Guest<'_>, fd: i32, pointer: i32, count: i32, written_at: i32) -> Result<i32> {
    if fd != 1 && fd != 2 {
        return Ok(BADF);
    }
    let (memory, state) = memory(&mut guest)?.data_and_store_mut(&mut guest);
    let Some(ranges) = vectors(memory, pointer, count) else {
        return Ok(FAULT);
    };
    let mut written = 0;
    for range in ranges {
        let piece = &memory[range];
        let piece = &piece[..piece.len().min(MOST_AT_ONCE - written)];
        match fd {
            1 => state.output.lock().write(piece)?,
            _ => state.stderr.write(piece),
        }
        written += piece.len();
    }
    let total = u32::try_from(written).unwrap_or(u32::MAX);
    if !put(memory, written_at, &total.to_le_bytes()) {
        return Ok(FAULT);
    }
    if fd == 1 && state.output.lock().is_ahead() {
        // The reader of the answer polls the guest again after it has taken something, so that nobody needs waking.
        let output = Arc::clone(&state.output);
        std::future::poll_fn(|_| match output.lock().is_ahead() {
            true => std::task::Poll::Pending,
            false => std::task::Poll::Ready(()),
        })
        .await;
    }
    Ok(OK)
}

async fn fd_read(mut guest: Guest<'_>, fd: i32, pointer: i32, count: i32, read_at: i32) -> Result<i32> {
    if fd != 0 {
        return Ok(BADF);
    }
    let memory = memory(&mut guest)?;
    // Waited for first: a guest's memory can't be borrowed across the wait.
    if guest.data_mut().stdin.more().await.is_err() {
        return Ok(IO);
    }
    let (memory, state) = memory.data_and_store_mut(&mut guest);
    let Some(ranges) = vectors(memory, pointer, count) else {
        return Ok(FAULT);
    };
    let piece = &mut state.stdin.piece;
    let mut read = 0_u32;
    for range in ranges {
        let length = range.len().min(piece.len());
        memory[range.start..range.start + length].copy_from_slice(&piece[..length]);
        piece.advance(length);
        read += u32::try_from(length).unwrap_or(0);
    }
    Ok(if put(memory, read_at, &read.to_le_bytes()) { OK } else { FAULT })
}

fn now_ns(guest: &CgiGuest, clock: i32) -> Option<u64> {
    match clock {
        0 => u64::try_from(guest.clock.now().0).ok(),
        1 => u64::try_from(guest.started.elapsed().as_nanos()).ok(),
        2 | 3 => Some(guest.limiter.usage.running_cpu_ns()),
        _ => None,
    }
}

fn clock_time_get(mut guest: Guest<'_>, (clock, _precision, at): (i32, i64, i32)) -> Result<i32> {
    let Some(now) = now_ns(guest.data(), clock) else {
        return Ok(INVAL);
    };
    let memory = memory(&mut guest)?.data_mut(&mut guest);
    Ok(if put(memory, at, &now.to_le_bytes()) { OK } else { FAULT })
}

fn clock_res_get(mut guest: Guest<'_>, (clock, at): (i32, i32)) -> Result<i32> {
    if !(0..4).contains(&clock) {
        return Ok(INVAL);
    }
    let memory = memory(&mut guest)?.data_mut(&mut guest);
    Ok(if put(memory, at, &1_000_u64.to_le_bytes()) { OK } else { FAULT })
}

fn random_get(mut guest: Guest<'_>, (at, length): (i32, i32)) -> Result<i32> {
    let memory = memory(&mut guest)?.data_mut(&mut guest);
    let length = length.cast_unsigned() as usize;
    if length > MOST_AT_ONCE {
        return Ok(INVAL);
    }
    let Some(place) = memory.get_mut(range(at, length)) else {
        return Ok(FAULT);
    };
    Ok(if getrandom::fill(place).is_ok() { OK } else { IO })
}

fn fd_fdstat_get(mut guest: Guest<'_>, (fd, at): (i32, i32)) -> Result<i32> {
    const READ: u64 = 1 << 1;
    const WRITE: u64 = 1 << 6;
    const CHARACTER_DEVICE: u8 = 2;
    let rights = match fd {
        0 => READ,
        1 | 2 => WRITE,
        _ => return Ok(BADF),
    };
    let mut stat = [0; 24];
    stat[0] = CHARACTER_DEVICE;
    stat[8..16].copy_from_slice(&rights.to_le_bytes());
    let memory = memory(&mut guest)?.data_mut(&mut guest);
    Ok(if put(memory, at, &stat) { OK } else { FAULT })
}

fn fd_filestat_get(mut guest: Guest<'_>, (fd, at): (i32, i32)) -> Result<i32> {
    if !(0..3).contains(&fd) {
        return Ok(BADF);
    }
    let mut stat = [0; 64];
    stat[16] = 2;
    let memory = memory(&mut guest)?.data_mut(&mut guest);
    Ok(if put(memory, at, &stat) { OK } else { FAULT })
}

/// Sleeps, or says at once that the streams are ready: they always are, since reading waits by itself.
async fn poll_oneoff(
    mut guest: Guest<'_>,
    pointer: i32,
    events: i32,
    count: i32,
    told_at: i32,
) -> Result<i32> {
    let count = count.cast_unsigned();
    if count == 0 || count > MOST_VECTORS {
        return Ok(INVAL);
    }
    let memory = memory(&mut guest)?;
    let mut ready = Vec::new();
    let mut sleepers: Vec<(u64, u8, Duration)> = Vec::new();
    {
        let (bytes, state) = memory.data_and_store_mut(&mut guest);
        for at in 0..count {
            let Some(entry) = bytes.get(range(pointer.wrapping_add((at * 48).cast_signed()), 48)) else {
                return Ok(FAULT);
            };
            let word = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap_or_default());
            let half = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap_or_default());
            match entry[8] {
                0 => {
                    let clock = half(16).cast_signed();
                    let Some(now) = now_ns(state, clock).filter(|_| clock < 2) else {
                        return Ok(INVAL);
                    };
                    let absolute = entry[40] & 1 == 1;
                    let wait = if absolute { word(24).saturating_sub(now) } else { word(24) };
                    sleepers.push((word(0), 0, Duration::from_nanos(wait)));
                }
                kind @ (1 | 2) => {
                    let known = if kind == 1 { half(16) == 0 } else { matches!(half(16), 1 | 2) };
                    ready.push((word(0), kind, if known { OK } else { BADF }));
                }
                _ => return Ok(INVAL),
            }
        }
    }
    if ready.is_empty()
        && let Some(first) = sleepers.iter().map(|(_, _, wait)| *wait).min()
    {
        tokio::time::sleep(first).await;
        ready.extend(
            sleepers.iter().filter(|(_, _, wait)| *wait <= first).map(|(data, kind, _)| (*data, *kind, OK)),
        );
    }
    let bytes = memory.data_mut(&mut guest);
    for (at, (data, kind, errno)) in (0_u32..).zip(&ready) {
        let mut event = [0; 32];
        event[..8].copy_from_slice(&data.to_le_bytes());
        event[8..10].copy_from_slice(&u16::try_from(*errno).unwrap_or(0).to_le_bytes());
        event[10] = *kind;
        if *kind > 0 {
            event[16..24].copy_from_slice(&1_u64.to_le_bytes());
        }
        if !put(bytes, events.wrapping_add((at * 32).cast_signed()), &event) {
            return Ok(FAULT);
        }
    }
    let told = u32::try_from(ready.len()).unwrap_or(u32::MAX);
    Ok(if put(bytes, told_at, &told.to_le_bytes()) { OK } else { FAULT })
}

/// Of the standard streams `known`, of all others "bad file descriptor".
fn stream(fd: i32, known: i32) -> i32 {
    if (0..3).contains(&fd) { known } else { BADF }
}

/// Adds all functions of `wasi_snapshot_preview1`.
pub(crate) fn add_to_linker(linker: &mut Linker<CgiGuest>) -> Result<()> {
    linker.func_wrap(MODULE, "args_sizes_get", |mut guest: Guest<'_>, count: i32, bytes: i32| {
        let block = Arc::clone(&guest.data().arguments);
        sizes(&mut guest, count, bytes, block.count, block.bytes.len())
    })?;
    linker.func_wrap(MODULE, "args_get", |mut guest: Guest<'_>, pointers: i32, strings: i32| {
        let (memory, state) = memory(&mut guest)?.data_and_store_mut(&mut guest);
        wasmtime::error::Ok(hand_out(memory, pointers, strings, &state.arguments))
    })?;
    linker.func_wrap(MODULE, "environ_sizes_get", |mut guest: Guest<'_>, count: i32, bytes: i32| {
        let block = guest.data_mut().environment();
        let (variables, length) = (block.count, block.bytes.len());
        sizes(&mut guest, count, bytes, variables, length)
    })?;
    linker.func_wrap(MODULE, "environ_get", |mut guest: Guest<'_>, pointers: i32, strings: i32| {
        let (memory, state) = memory(&mut guest)?.data_and_store_mut(&mut guest);
        wasmtime::error::Ok(hand_out(memory, pointers, strings, state.environment()))
    })?;
    linker.func_wrap(MODULE, "clock_res_get", |guest: Guest<'_>, clock: i32, at: i32| {
        clock_res_get(guest, (clock, at))
    })?;
    linker.func_wrap(MODULE, "clock_time_get", |guest: Guest<'_>, clock: i32, precision: i64, at: i32| {
        clock_time_get(guest, (clock, precision, at))
    })?;
    linker.func_wrap(MODULE, "random_get", |guest: Guest<'_>, at: i32, length: i32| {
        random_get(guest, (at, length))
    })?;
    linker.func_wrap(MODULE, "fd_fdstat_get", |guest: Guest<'_>, fd: i32, at: i32| {
        fd_fdstat_get(guest, (fd, at))
    })?;
    linker.func_wrap(MODULE, "fd_filestat_get", |guest: Guest<'_>, fd: i32, at: i32| {
        fd_filestat_get(guest, (fd, at))
    })?;
    linker.func_wrap_async(
        MODULE,
        "fd_write",
        |guest: Guest<'_>, (fd, vectors, count, at): (i32, i32, i32, i32)| {
            Box::new(fd_write(guest, fd, vectors, count, at))
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "fd_read",
        |guest: Guest<'_>, (fd, vectors, count, at): (i32, i32, i32, i32)| {
            Box::new(fd_read(guest, fd, vectors, count, at))
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "poll_oneoff",
        |guest: Guest<'_>, (from, to, count, at): (i32, i32, i32, i32)| {
            Box::new(poll_oneoff(guest, from, to, count, at))
        },
    )?;
    linker.func_wrap_async(MODULE, "sched_yield", |_: Guest<'_>, (): ()| {
        Box::new(async {
            tokio::task::yield_now().await;
            OK
        })
    })?;
    linker.func_wrap(MODULE, "proc_exit", |status: i32| -> Result<()> { Err(Exit(status).into()) })?;
    linker.func_wrap(MODULE, "proc_raise", |_signal: i32| NOTSUP)?;
    add_file_functions(linker, MODULE)
}

/// What needs a file: there is none, only the streams can be told apart from nothing.
fn add_file_functions(linker: &mut Linker<CgiGuest>, name: &str) -> Result<()> {
    linker.func_wrap(name, "fd_advise", |fd: i32, _: i64, _: i64, _: i32| stream(fd, SPIPE))?;
    linker.func_wrap(name, "fd_allocate", |fd: i32, _: i64, _: i64| stream(fd, SPIPE))?;
    linker.func_wrap(name, "fd_close", |fd: i32| stream(fd, OK))?;
    linker.func_wrap(name, "fd_datasync", |fd: i32| stream(fd, INVAL))?;
    linker.func_wrap(name, "fd_fdstat_set_flags", |fd: i32, _: i32| stream(fd, NOTSUP))?;
    linker.func_wrap(name, "fd_fdstat_set_rights", |fd: i32, _: i64, _: i64| stream(fd, NOTSUP))?;
    linker.func_wrap(name, "fd_filestat_set_size", |fd: i32, _: i64| stream(fd, INVAL))?;
    linker.func_wrap(name, "fd_filestat_set_times", |fd: i32, _: i64, _: i64, _: i32| stream(fd, INVAL))?;
    linker.func_wrap(name, "fd_pread", |fd: i32, _: i32, _: i32, _: i64, _: i32| stream(fd, SPIPE))?;
    linker.func_wrap(name, "fd_prestat_get", |_: i32, _: i32| BADF)?;
    linker.func_wrap(name, "fd_prestat_dir_name", |_: i32, _: i32, _: i32| BADF)?;
    linker.func_wrap(name, "fd_pwrite", |fd: i32, _: i32, _: i32, _: i64, _: i32| stream(fd, SPIPE))?;
    linker.func_wrap(name, "fd_readdir", |_: i32, _: i32, _: i32, _: i64, _: i32| BADF)?;
    linker.func_wrap(name, "fd_renumber", |_: i32, _: i32| BADF)?;
    linker.func_wrap(name, "fd_seek", |fd: i32, _: i64, _: i32, _: i32| stream(fd, SPIPE))?;
    linker.func_wrap(name, "fd_sync", |fd: i32| stream(fd, INVAL))?;
    linker.func_wrap(name, "fd_tell", |fd: i32, _: i32| stream(fd, SPIPE))?;
    linker.func_wrap(name, "path_create_directory", |_: i32, _: i32, _: i32| BADF)?;
    linker.func_wrap(name, "path_filestat_get", |_: i32, _: i32, _: i32, _: i32, _: i32| BADF)?;
    linker.func_wrap(
        name,
        "path_filestat_set_times",
        |_: i32, _: i32, _: i32, _: i32, _: i64, _: i64, _: i32| BADF,
    )?;
    linker.func_wrap(name, "path_link", |_: i32, _: i32, _: i32, _: i32, _: i32, _: i32, _: i32| BADF)?;
    linker.func_wrap(
        name,
        "path_open",
        |_: i32, _: i32, _: i32, _: i32, _: i32, _: i64, _: i64, _: i32, _: i32| BADF,
    )?;
    linker.func_wrap(name, "path_readlink", |_: i32, _: i32, _: i32, _: i32, _: i32, _: i32| BADF)?;
    linker.func_wrap(name, "path_remove_directory", |_: i32, _: i32, _: i32| BADF)?;
    linker.func_wrap(name, "path_rename", |_: i32, _: i32, _: i32, _: i32, _: i32, _: i32| BADF)?;
    linker.func_wrap(name, "path_symlink", |_: i32, _: i32, _: i32, _: i32, _: i32| BADF)?;
    linker.func_wrap(name, "path_unlink_file", |_: i32, _: i32, _: i32| BADF)?;
    linker.func_wrap(name, "sock_accept", |fd: i32, _: i32, _: i32| stream(fd, NOTSOCK))?;
    linker.func_wrap(name, "sock_recv", |fd: i32, _: i32, _: i32, _: i32, _: i32, _: i32| {
        stream(fd, NOTSOCK)
    })?;
    linker.func_wrap(name, "sock_send", |fd: i32, _: i32, _: i32, _: i32, _: i32| stream(fd, NOTSOCK))?;
    linker.func_wrap(name, "sock_shutdown", |fd: i32, _: i32| stream(fd, NOTSOCK))?;
    Ok(())
}

/// A module that was linked, and where its function is.
pub(crate) struct CgiProgram<T: 'static> {
    pre: InstancePre<T>,
    start: ModuleExport,
    memory: ModuleExport,
}

impl<T: Send + 'static> CgiProgram<T> {
    /// Links a module.
    ///
    /// # Errors
    /// When it lacks an export, or an import has another type than the function of that name.
    pub(crate) fn link(linker: &Linker<T>, module: &Module) -> sas_core::Result<Self> {
        let export = |name: &str, wanted: &str, fits: fn(&ExternType) -> bool| match module.get_export(name) {
            Some(found) if fits(&found) => module.get_export_index(name).ok_or_else(|| missing(name, wanted)),
            Some(_) | None => Err(missing(name, wanted)),
        };
        let start = export("_start", "a function without parameters and results", |found| {
            found.func().is_some_and(|func| func.params().len() == 0 && func.results().len() == 0)
        })?;
        let memory =
            export("memory", "its memory", |found| found.memory().is_some_and(|memory| !memory.is_shared()))?;
        let pre = linker
            .instantiate_pre(module)
            .map_err(|error| invalid(format!("source: the module does not fit WASI preview 1: {error:#}")))?;
        Ok(Self { pre, start, memory })
    }

    pub(crate) fn engine(&self) -> &Engine {
        self.pre.module().engine()
    }

    /// A fresh instance: its function and its memory.
    pub(crate) async fn instantiate(
        &self,
        store: &mut Store<T>,
    ) -> Result<(TypedFunc<(), ()>, Option<Memory>)> {
        let instance = self.pre.instantiate_async(&mut *store).await?;
        let memory = instance.get_module_export(&mut *store, &self.memory).and_then(Extern::into_memory);
        let start = instance
            .get_module_export(&mut *store, &self.start)
            .and_then(Extern::into_func)
            .ok_or_else(|| wasmtime::Error::msg("the module exports no _start"))?
            .typed::<(), ()>(&*store)?;
        Ok((start, memory))
    }
}

fn missing(name: &str, wanted: &str) -> sas_core::Error {
    invalid(format!(
        "source: the module does not export {name} as {wanted}: build it as a command of wasm32-wasip1 (not a library)"
    ))
}

/// Whether there is a function of this name.
pub(crate) fn provides(module: &str, name: &str) -> bool {
    module == MODULE && FUNCTIONS.contains(&name)
}

/// Serves one request in a fresh sandbox.
pub(crate) fn serve(
    program: Arc<CgiProgram<CgiGuest>>,
    guest: CgiGuest,
) -> impl Future<Output = Result<()>> + Send + 'static {
    // Made before the future, which holds no more of the guest than a pointer then.
    let mut store = sandbox::store(program.engine(), guest, |guest| &mut guest.limiter);
    async move {
        let (start, memory) = program.instantiate(&mut store).await?;
        store.data_mut().memory = memory;
        match start.call_async(&mut store, ()).await {
            Err(error) if error.downcast_ref::<Exit>() != Some(&Exit(0)) => return Err(error),
            _ => {}
        }
        store.data().output.lock().finish()
    }
}

impl Limited for CgiGuest {
    fn limits(&self) -> &Limiter {
        &self.limiter
    }
}
