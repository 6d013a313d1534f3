;; A memory of 4 GiB from the start.
(memory (export "memory") 65536)
(func $handle (param $m i32) (result i32)
  (call $ok (i32.const 0)))
