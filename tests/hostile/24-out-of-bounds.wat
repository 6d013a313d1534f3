;; Reads behind its memory.
(func $handle (param $m i32) (result i32)
  (i32.load (i32.const -4)))
