;;; Drives dape as its user does: a breakpoint at the cursor, a configuration, a step, the end.  -*- lexical-binding: t -*-
;; Environment: VMD_CONFIGURATION (what `vmdebug editor emacs' prints), VMD_FILE, VMD_LINE, VMD_RESULT (a file),
;; VMD_TITLE (the name of the configuration), VMD_VM (the VM's name).

(require 'json)
(require 'dape)

(defvar vmd-seen nil "The frames at the stops, and the value of a variable.")
(defvar vmd-done nil)

(defun vmd-finish (&optional trouble)
  (with-temp-file (getenv "VMD_RESULT")
    (insert (json-encode `((frames . ,(vconcat (reverse (alist-get 'frames vmd-seen))))
                           (filename . ,(alist-get 'filename vmd-seen))
                           (timeout . ,dape-request-timeout)
                           (trouble . ,trouble)))))
  (setq vmd-done t))

(defun vmd-stopped ()
  "Look at the frame of a stop, once dape has its stack."
  (when-let* ((conn (dape--live-connection 'stopped t))
              (frame (dape--current-stack-frame conn))
              (id (plist-get frame :id))
              (pc (plist-get frame :instructionPointerReference))
              ((not (equal pc (alist-get 'pc vmd-seen)))))
    (setf (alist-get 'pc vmd-seen) pc)
    (push (vector (plist-get frame :name) (plist-get frame :line)
                  (plist-get (plist-get frame :source) :path))
          (alist-get 'frames vmd-seen))
    (if (cdr (alist-get 'frames vmd-seen))
        (dape-request conn :disconnect '(:terminateDebuggee t)
                      (lambda (&rest _) (run-at-time 0.1 nil #'vmd-finish)))
      (dape-request conn :evaluate `(:frameId ,id :expression "filename" :context "watch")
                    (lambda (body &rest _)
                      (setf (alist-get 'filename vmd-seen) (plist-get body :result))
                      (dape-next conn))))))

(load (getenv "VMD_CONFIGURATION"))
(setq dape-buffer-window-arrangement nil
      dape-start-hook nil
      dape-stopped-hook nil
      dape-update-ui-hook '(vmd-stopped))
(find-file (getenv "VMD_FILE"))
(goto-char (point-min))
(forward-line (1- (string-to-number (getenv "VMD_LINE"))))
(dape-breakpoint-toggle)
(dape (dape--config-eval (intern (getenv "VMD_TITLE")) (list :vm (getenv "VMD_VM"))))
(while (not vmd-done)
  (accept-process-output nil 0.1))
(kill-emacs 0)
