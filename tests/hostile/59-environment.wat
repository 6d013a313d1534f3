;; Looks for an environment and for folders. One thing found, and it traps.
(import "wasi:cli/environment@0.2.3" "get-environment" (func $environment (param i32)))
(import "wasi:filesystem/preopens@0.2.3" "get-directories" (func $directories (param i32)))
(func $handle (param $m i32) (result i32)
  (call $environment (i32.const 3000))
  (if (i32.load (i32.const 3004)) (then unreachable))
  (call $directories (i32.const 3000))
  (if (i32.load (i32.const 3004)) (then unreachable))
  (call $ok (i32.const 0)))
