;; Looks for files by every name it can think of, below every number that a folder could have. One success, and it traps.
(module
  (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "/etc/passwd../../etc/passwd.etc/..link/")
  (func $try (param $at i32) (param $len i32)
    (local $fd i32)
    (loop $next
      (if (i32.eqz (call $open (local.get $fd) (i32.const 1) (local.get $at) (local.get $len)
            (i32.const 0) (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 100)))
        (then unreachable))
      (local.set $fd (i32.add (local.get $fd) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $fd) (i32.const 64)))))
  (func (export "_start")
    (call $try (i32.const 0) (i32.const 11))
    (call $try (i32.const 11) (i32.const 16))
    (call $try (i32.const 27) (i32.const 1))
    (call $try (i32.const 28) (i32.const 6))
    (call $try (i32.const 34) (i32.const 5))))
