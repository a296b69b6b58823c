/// Idle times longer than this share one count.
pub(super) const BINS: usize = 240;
/// Minutes of the past that are remembered one by one: a day.
const DAY: usize = 1_440;
const WORDS: usize = DAY.div_ceil(64);

/// What is remembered of one revision. Times are minutes since the epoch.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    first: i64,
    last: i64,
    /// Minutes with a call.
    calls: u32,
    /// Bit `i`: called in the minute `last - i`.
    recent: [u64; WORDS],
    /// Idle times by length in minutes, halved together when one is full, so that old habits fade.
    idle: [u8; BINS],
    beyond: u8,
    /// The commonest idle time.
    usual: u8,
    /// The sum of all counts of idle times.
    total: u16,
    /// The longest idle time.
    longest: u16,
    /// The last idle times, newest first; 0: none yet.
    gaps: [u16; 8],
}

impl Memory {
    pub(super) fn new(minute: i64) -> Self {
        let mut recent = [0; WORDS];
        recent[0] = 1;
        Self {
            first: minute,
            last: minute,
            calls: 1,
            recent,
            idle: [0; BINS],
            beyond: 0,
            usual: 0,
            total: 0,
            longest: 0,
            gaps: [0; 8],
        }
    }

    /// It was called in `minute`. A minute that is not later than the last one (a clock that went back) begins a new
    /// idle time and teaches nothing.
    pub(super) fn call(&mut self, minute: i64) {
        let Ok(gap @ 1..) = usize::try_from(minute.saturating_sub(self.last)) else {
            self.last = minute;
            self.first = self.first.min(minute);
            return;
        };
        self.last = minute;
        self.calls = self.calls.saturating_add(1);
        self.shift(gap);
        let short = u16::try_from(gap).unwrap_or(u16::MAX);
        self.longest = self.longest.max(short);
        self.gaps.rotate_right(1);
        self.gaps[0] = short;
        self.total += 1;
        let count = match self.idle.get_mut(gap - 1) {
            Some(count) => count,
            None => &mut self.beyond,
        };
        *count += 1;
        let full = *count == u8::MAX;
        if gap <= BINS && self.idle[gap - 1] > self.usual_count() {
            #[allow(clippy::cast_possible_truncation, reason = "at most 240")]
            (self.usual = gap as u8);
        }
        if full {
            self.halve();
        }
    }

    fn shift(&mut self, gap: usize) {
        let (words, bits) = (gap / 64, gap % 64);
        for at in (0..WORDS).rev() {
            let old = |at: Option<usize>| at.map_or(0, |at| self.recent[at]);
            let low = old(at.checked_sub(words)) << bits;
            let carry = if bits > 0 { old(at.checked_sub(words + 1)) >> (64 - bits) } else { 0 };
            self.recent[at] = low | carry;
        }
        self.recent[0] |= 1;
    }

    fn halve(&mut self) {
        self.beyond /= 2;
        self.total = u16::from(self.beyond);
        for count in &mut self.idle {
            *count /= 2;
            self.total += u16::from(*count);
        }
    }

    /// The minute of the last call.
    pub(super) fn last(&self) -> i64 {
        self.last
    }

    /// Minutes from the first call to the last one.
    pub(super) fn known(&self) -> usize {
        usize::try_from(self.last.saturating_sub(self.first)).unwrap_or(0)
    }

    pub(super) fn calls(&self) -> u32 {
        self.calls
    }

    /// Idle times by length in minutes, from one on.
    pub(super) fn idle(&self) -> &[u8; BINS] {
        &self.idle
    }

    /// How many idle times were counted.
    pub(super) fn total(&self) -> u16 {
        self.total
    }

    /// The commonest idle time; 0: none yet.
    pub(super) fn usual(&self) -> u8 {
        self.usual
    }

    pub(super) fn usual_count(&self) -> u8 {
        if self.usual == 0 { 0 } else { self.idle[usize::from(self.usual) - 1] }
    }

    pub(super) fn longest(&self) -> u16 {
        self.longest
    }

    pub(super) fn gaps(&self) -> &[u16; 8] {
        &self.gaps
    }

    /// Whether it was called `ago` minutes before the last call, 0 or 1.
    pub(super) fn was(&self, ago: usize) -> usize {
        if ago < DAY { (self.recent[ago / 64] >> (ago % 64) & 1) as usize } else { 0 }
    }

    /// The minutes with a call, by words of 64 minutes into the past.
    pub(super) fn recent(&self) -> &[u64; WORDS] {
        &self.recent
    }
}
