;; Does what the path says, by the CGI convention: what the tests of the runtime are made of.
;;   /            echoes the body             /slow      answers "slow" after half a second
;;   /endless     never stops sending         /crash     traps
;;   /loop        never ends                  /recurse   calls itself for ever
;;   /bomb        takes memory for ever       /grow      takes 16 MiB, then answers
;;   /exit        exits with status 3         /silent    ends without an answer
;;   /log         writes to standard error and echoes
;;   /environment answers with its environment, a variable a line
;;   /illegal     answers with an illegal header
;;   /table       asks for a huge table       /partial   sends half a body, then traps
;;   /idle        sends a head, then sleeps for ever
;;   /flood       sends a body without end as fast as it can
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 4)
  (table $table 1 funcref)
  ;; 0: a vector; 8: a count; 16: a subscription of 48 bytes; 64: an event of 32 bytes.
  (data (i32.const 256) "Content-Type: text/plain\n\n")
  (data (i32.const 320) "slow")
  (data (i32.const 336) "conformance-output\n")
  (data (i32.const 384) "Bad Header: 1\n\n")
  (data (i32.const 416) "PATH_INFO=")
  ;; Tests set this to make a function that always does one thing.
  (data (i32.const 448) "????")
  (global $path (mut i32) (i32.const 0))
  (global $variables (mut i32) (i32.const 0))
  (global $variables_end (mut i32) (i32.const 0))

  (func $write (param $fd i32) (param $at i32) (param $length i32)
    (loop $again
      (if (i32.eqz (local.get $length)) (then (return)))
      (i32.store (i32.const 0) (local.get $at))
      (i32.store (i32.const 4) (local.get $length))
      (if (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)) (then (unreachable)))
      (local.set $at (i32.add (local.get $at) (i32.load (i32.const 8))))
      (local.set $length (i32.sub (local.get $length) (i32.load (i32.const 8))))
      (br $again)))

  (func $head (call $write (i32.const 1) (i32.const 256) (i32.const 26)))

  ;; Sleeps for so many nanoseconds.
  (func $sleep (param $time i64)
    (memory.fill (i32.const 16) (i32.const 0) (i32.const 48))
    (i32.store (i32.const 32) (i32.const 1))
    (i64.store (i32.const 40) (local.get $time))
    (drop (call $poll_oneoff (i32.const 16) (i32.const 64) (i32.const 1) (i32.const 8))))

  ;; Finds PATH_INFO in the environment, which lies at 64 Ki and above.
  (func $find_path (local $at i32) (local $same i32)
    (drop (call $environ_sizes_get (i32.const 16) (i32.const 20)))
    (global.set $variables (i32.add (i32.const 65536) (i32.mul (i32.load (i32.const 16)) (i32.const 4))))
    (global.set $variables_end (i32.add (global.get $variables) (i32.load (i32.const 20))))
    (drop (call $environ_get (i32.const 65536) (global.get $variables)))
    (local.set $at (global.get $variables))
    (loop $next
      (local.set $same (i32.const 0))
      (block $differs
        (loop $compare
          (br_if $differs
            (i32.ne (i32.load8_u (i32.add (local.get $at) (local.get $same)))
                    (i32.load8_u (i32.add (i32.const 416) (local.get $same)))))
          (local.set $same (i32.add (local.get $same) (i32.const 1)))
          (br_if $compare (i32.lt_u (local.get $same) (i32.const 10))))
        ;; Past the slash.
        (global.set $path (i32.add (local.get $at) (i32.const 11)))
        (return))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $at) (global.get $variables_end)))))

  (func $echo (local $read i32)
    (call $head)
    (loop $more
      (i32.store (i32.const 0) (i32.const 131072))
      (i32.store (i32.const 4) (i32.const 65536))
      (if (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then (unreachable)))
      (local.set $read (i32.load (i32.const 8)))
      (if (local.get $read)
        (then
          (call $write (i32.const 1) (i32.const 131072) (local.get $read))
          (br $more)))))

  (func $environment (local $at i32)
    (local.set $at (global.get $variables))
    (loop $next
      (if (i32.lt_u (local.get $at) (global.get $variables_end))
        (then
          (if (i32.eqz (i32.load8_u (local.get $at))) (then (i32.store8 (local.get $at) (i32.const 10))))
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (br $next))))
    (call $head)
    (call $write (i32.const 1) (global.get $variables)
      (i32.sub (global.get $variables_end) (global.get $variables))))

  (func $recurse (param $n i64) (result i64)
    (i64.add (call $recurse (i64.add (local.get $n) (i64.const 1))) (i64.const 1)))

  ;; The first four letters of the path, as a number.
  (func $is (param $letters i32) (result i32)
    (i32.eq (i32.load (global.get $path)) (local.get $letters)))

  (func (export "_start")
    (call $find_path)
    (if (call $is (i32.const 0x776f6c73)) ;; slow
      (then
        (call $sleep (i64.const 500000000))
        (call $head)
        (call $write (i32.const 1) (i32.const 320) (i32.const 4))
        (return)))
    (if (call $is (i32.const 0x6c646e65)) ;; endl
      (then
        (call $head)
        (loop $for_ever
          (call $write (i32.const 1) (i32.const 320) (i32.const 4))
          (call $sleep (i64.const 20000000))
          (br $for_ever))))
    (if (call $is (i32.const 0x6f6f6c66)) ;; floo
      (then
        (call $head)
        (loop $for_ever
          (call $write (i32.const 1) (i32.const 131072) (i32.const 65536))
          (br $for_ever))))
    (if (call $is (i32.const 0x656c6469)) ;; idle
      (then
        (call $head)
        (loop $for_ever
          (call $sleep (i64.const 1000000000000))
          (br $for_ever))))
    (if (call $is (i32.const 0x73617263)) (then (unreachable))) ;; cras
    (if (call $is (i32.const 0x706f6f6c)) (then (loop $for_ever (br $for_ever)))) ;; loop
    (if (call $is (i32.const 0x75636572)) (then (drop (call $recurse (i64.const 0))))) ;; recu
    (if (call $is (i32.const 0x626d6f62)) ;; bomb
      (then (loop $for_ever (drop (memory.grow (i32.const 16))) (br $for_ever))))
    (if (call $is (i32.const 0x776f7267)) ;; grow
      (then (drop (memory.grow (i32.const 256)))))
    (if (call $is (i32.const 0x6c626174)) ;; tabl
      (then (drop (table.grow $table (ref.null func) (i32.const 10000000)))))
    (if (call $is (i32.const 0x74697865)) (then (call $proc_exit (i32.const 3)))) ;; exit
    (if (call $is (i32.const 0x656c6973)) (then (return))) ;; sile
    (if (call $is (i32.const 0x656c6c69)) ;; ille
      (then (call $write (i32.const 1) (i32.const 384) (i32.const 15)) (return)))
    (if (call $is (i32.const 0x69766e65)) (then (call $environment) (return))) ;; envi
    (if (call $is (i32.const 0x74726170)) ;; part
      (then
        (call $head)
        (call $write (i32.const 1) (i32.const 320) (i32.const 4))
        (call $sleep (i64.const 20000000))
        (unreachable)))
    (if (i32.eq (i32.and (i32.load (global.get $path)) (i32.const 0xffffff)) (i32.const 0x676f6c)) ;; log
      (then (call $write (i32.const 2) (i32.const 336) (i32.const 19))))
    (call $echo)))
